"""The paper's ablation, one step at a time: `--config configs/ablation.py:NAME` for a NAME of VARIANTS.

  python -m affectcodec_jax ablate --data SPEECH/manifest.jsonl --out runs/ablation

trains all of them for the same number of steps and scores them side by side. The lite backbone,
without the adversarial loss: what differs is what the variant names.
"""

from affectcodec_jax.evaluation.ablate import VARIANTS
from configs.lite import get_config as lite_config


def get_config(variant='cem'):
  """Returns the configuration of one variant."""
  c = lite_config()
  c.update_from_flattened_dict(VARIANTS[variant])
  c.loss.adversarial = 0.0
  c.loss.posterior = 0.0  # the paper has none
  c.data.crop_seconds = 0.96
  c.train.steps = 1000
  c.train.checkpoint_every = 200
  c.train.keep_checkpoints = 1
  c.train.log_every = 20
  c.train.num_samples = 1
  c.train.valid_clips = 0  # every variant is evaluated
  return c
