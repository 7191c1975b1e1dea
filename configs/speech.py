"""Base on real speech: a folder of audio files or a manifest (docs/training.md, "On your own speech").

  python -m affectcodec_jax.train --config configs/speech.py --workdir runs/speech \
      --config.data.path=SPEECH/manifest.jsonl

34 minutes on two CPU cores. Losses of an early run, with another mel floor: docs/earlier.md.
"""

from configs.base import get_config as base_config


def get_config():
  """Returns the configuration."""
  c = base_config()
  c.data.source = 'folder'
  c.data.path = 'data/speech'
  c.data.crop_seconds = 0.64
  c.train.steps = 2000
  c.train.adversarial_start = 1500
  c.train.sample_every = 1000
  return c
