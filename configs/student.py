"""A student of the packaged teacher, or of any other (`teacher.kind`, `teacher.path`).

  python -m affectcodec_jax.emotion.distil --config configs/student.py --workdir runs/student \
      --config.data.source=folder --config.data.path=SPEECH/manifest.jsonl
"""

from ml_collections import ConfigDict

from configs.base import get_config as base_config


def get_config():
  """Returns the student's configuration."""
  base = base_config()
  c = ConfigDict()
  c.seed = 0
  c.model = base.model  # for the hop length
  c.teacher = base.teacher
  c.data = base.data
  c.data.crop_seconds = 1.6
  c.student = ConfigDict()
  c.student.width = 64
  c.student.depth = 6
  c.train = ConfigDict()
  c.train.steps = 700
  c.train.batch_size = 32
  c.train.lr = 2e-3
  c.train.weight_decay = 0.01
  c.train.ema_decay = 0.998
  c.train.log_every = 50
  return c
