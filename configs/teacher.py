"""The compact emotion teacher.

On labelled speech of your own (a manifest with `emotion`, `speaker` and `split`):

  python -m affectcodec_jax.emotion.train_teacher --config configs/teacher.py --workdir runs/teacher \
      --config.data.source=folder --config.data.path=SPEECH/manifest.jsonl
"""

from ml_collections import ConfigDict

from configs.base import get_config as base_config


def get_config():
  """Returns the teacher's configuration."""
  base = base_config()
  c = ConfigDict()
  c.seed = 0
  c.model = base.model  # for the hop length
  c.teacher = base.teacher
  c.data = base.data
  c.data.crop_seconds = 2.4
  c.data.gain_db = 3.0
  c.train = ConfigDict()
  c.train.steps = 1600
  c.train.batch_size = 32
  c.train.lr = 1e-3
  c.train.weight_decay = 0.05
  c.train.dropout = 0.2
  c.train.label_smoothing = 0.1
  c.train.ema_decay = 0.998
  c.train.log_every = 50
  return c
