"""The lite backbone on real speech: spectral frames in, an inverse STFT out; the quickest to train.

  python -m affectcodec_jax.train --config configs/lite.py --workdir runs/lite \
      --config.data.path=SPEECH/manifest.jsonl
"""

from configs.base import get_config as base_config


def get_config():
  """Returns the configuration."""
  c = base_config()
  c.model.backbone = 'lite'
  c.data.source = 'folder'
  c.data.path = 'data/speech'
  c.data.crop_seconds = 0.96
  c.train.batch_size = 8
  c.train.steps = 3000
  c.train.adversarial_start = 2000
  c.train.sample_every = 1000
  return c
