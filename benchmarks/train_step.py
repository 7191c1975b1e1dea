"""The trainer's own step on one device, whole: seconds, audio per second, and the discriminator's share.

`configs/base.py` as it is: teacher, all rates, with and without discriminator. (`lite_step` has lite's.)
"""

import functools

import jax
import numpy as np

from affectcodec_jax import config as config_lib
from affectcodec_jax.inference import weights
from affectcodec_jax.training.state import create_state
from affectcodec_jax.training.step import train_step
from benchmarks.measure import in_turn, rows
from configs import base


def run(threads, rounds):
  """Rows of the step with and without discriminator."""
  del threads
  config = base.get_config()
  shape = (config.train.batch_size, config_lib.crop_samples(config))
  audio = 0.06 * np.random.default_rng(0).normal(size=shape).astype(np.float32)
  frozen = {'teacher': weights.load_teacher(config, config.teacher.path)}
  state = jax.jit(functools.partial(create_state, config))(jax.random.key(0), frozen, audio)
  calls = {}
  for what, adversarial in (('without discriminator', False), ('whole', True)):
    step = jax.jit(functools.partial(train_step, config=config, adversarial=adversarial))
    calls[what] = lambda step=step: jax.block_until_ready(step(state, frozen, {'audio': audio}))
  seconds = in_turn(calls, rounds)
  shares = [1 - a / b for a, b in zip(seconds['without discriminator'], seconds['whole'])]
  yield from rows('configs/base.py', seconds, audio_seconds=round(audio.size / 16000, 2),
                  discriminator_share=round(sorted(shares)[len(shares) // 2], 2))
