"""The network that judges emotion: trained apart from the teacher, to score codecs and never to teach them.

  python -m affectcodec_jax teacher train_judge --config configs/judge.py --workdir runs/judge \
      --config.data.source=folder --config.data.path=SPEECH/manifest.jsonl
"""

from configs.base import emotion_config


def get_config():
  """Returns the judge's configuration."""
  c = emotion_config()
  del c['model'], c['teacher']  # it reads neither
  c.data.crop_seconds = 2.4
  c.data.gain_db = 3.0
  c.train.steps = 1000
  c.train.lr = 1e-3
  c.train.weight_decay = 0.05
  c.train.label_smoothing = 0.1
  return c
