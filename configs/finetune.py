"""Fine-tunes the packaged codec on your speech: its sizes, a small learning rate, rounding from the start.

  python -m affectcodec_jax.train --config configs/finetune.py --init_from=pretrained --workdir runs/mine \
      --config.data.path=SPEECH

200 steps are 26 minutes of speech.
"""

from configs.lite import get_config as lite_config


def get_config():
  """Returns the configuration."""
  c = lite_config()
  c.train.steps = 200
  c.train.lr = 1e-4
  c.train.unquantized_steps = c.train.rounding_steps = c.train.true_pitch_steps = 0
  c.train.checkpoint_every = 100
  c.train.sample_every = 200
  return c
