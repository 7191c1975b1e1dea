"""A student of the packaged teacher, or of any other (`teacher.kind`, `teacher.path`).

  python -m affectcodec_jax teacher distil --config configs/student.py --workdir runs/student \
      --config.data.source=folder --config.data.path=SPEECH/manifest.jsonl
"""

from ml_collections import ConfigDict

from configs.base import emotion_config


def get_config():
  """Returns the student's configuration."""
  c = emotion_config()
  c.data.crop_seconds = 1.6
  c.student = ConfigDict()
  c.student.width = 64
  c.student.depth = 6
  c.train.steps = 700
  c.train.lr = 2e-3
  c.train.weight_decay = 0.01
  return c
