"""The lite backbone on real speech: spectral frames in, a source and its filters out; quick to train.

  python -m affectcodec_jax.train --config configs/lite.py --workdir runs/lite \
      --config.data.path=SPEECH/manifest.jsonl
"""

from configs.base import get_config as base_config


def get_config():
  """Returns the configuration."""
  c = base_config()
  c.model.backbone = 'lite'
  c.loss.waveform = 0.0  # phases are the source's, not the recording's
  c.loss.commitment = 1.0
  c.loss.adversarial = 0.0  # the source-filter decoder has a voice without one
  c.loss.multi_rate = 0.0
  c.loss.posterior = 2.0  # emotion from six emotion bits: 0.51, without it 0.44 (docs/emotion.md)
  c.data.source = 'folder'
  c.data.path = 'data/speech'
  c.data.crop_seconds = 1.92  # twice what the decoder sees, so that many frames see no padding
  c.data.speed = 0.1
  c.data.equalise_db = 6.0
  c.train.batch_size = 4
  c.train.steps = 14_000
  c.train.lr = 1e-3
  c.train.weight_decay = 0.01
  c.train.clip_norm = 1.0
  c.train.warmup_steps = 100
  c.train.stage_dropout = 1.0
  c.train.rate_probs = (0.4, 0.3, 0.3)
  c.train.stage_fade = 1.0
  c.train.unquantized_steps = 500
  c.train.rounding_steps = 300
  c.train.checkpoint_every = 500
  c.train.sample_every = 1000
  return c
