"""The compact emotion teacher.

On labelled speech of your own (a manifest with `emotion`, `speaker` and `split`):

  python -m affectcodec_jax teacher train --config configs/teacher.py --workdir runs/teacher \
      --config.data.source=folder --config.data.path=SPEECH/manifest.jsonl
"""

from ml_collections import ConfigDict

from configs.base import emotion_config


def get_config():
  """Returns the teacher's configuration."""
  c = emotion_config()
  c.guide = ConfigDict()  # a large network to learn from besides the labels; as section teacher of a codec
  c.guide.kind = 'whisper_base'
  c.guide.dim = 512
  c.guide.layer = 3
  c.guide.path = ''  # its safetensors file; '' is none
  c.guide.weight = 2.0  # of its features, over that of the labels
  c.data.crop_seconds = 2.4
  c.data.gain_db = 3.0
  c.train.start = ''  # a teacher.safetensors of these sizes to go on from; '' is none
  c.train.steps = 1600
  c.train.lr = 1e-3
  c.train.weight_decay = 0.05
  c.train.dropout = 0.2
  c.train.label_smoothing = 0.1
  return c
