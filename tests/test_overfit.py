"""The codec learns: one batch, seen again and again, is reproduced."""

import functools

import jax

from affectcodec_jax import config as config_lib
from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.inference import weights
from affectcodec_jax.training.state import create_state
from affectcodec_jax.training.step import train_step
from configs.base import get_config
from tests.conftest import tiny


def test_one_batch_is_overfitted():
  """Mel loss under a third of its start within 60 steps of every loss but the discriminator's.

  Of one crop of speech-like sound at both rates. Measured: a third of 4.3 at step 26, a fifth at step 60.
  """
  config = tiny(get_config())
  # One block and two stages: a program that is soon compiled.
  config.model.update(strides=(320,), encoder_dim=4, decoder_dim=16, num_stages=2)
  config.rates, config.train.rate_probs = (1, 2), (0.5, 0.5)
  config.train.update(batch_size=1, steps=60, warmup_steps=2, lr=1e-2, final_lr_fraction=1.0)
  config_lib.validate(config)
  speech = at_codec_level(SyntheticSource(1, seed=0)[0]['audio'])
  audio = speech[None, 8000:8000 + config_lib.crop_samples(config)]
  teacher = {'teacher': weights.load_teacher(config)}
  state = jax.jit(functools.partial(create_state, config))(jax.random.PRNGKey(0), teacher, audio)
  step = jax.jit(functools.partial(train_step, config=config, adversarial=False))
  history = []
  for _ in range(60):
    state, metrics = step(state, teacher, {'audio': audio})
    history.append({name: float(value) for name, value in metrics.items()})
    if history[-1]['loss/mel'] < history[0]['loss/mel'] / 3:
      break
  first, last = history[0], history[-1]
  assert all(m['finite'] for m in history)
  assert last['loss/mel'] < first['loss/mel'] / 3, (first, last)
  for name in ('loss/total', 'loss/emotion', 'loss/cycle'):
    assert last[name] < first[name], (name, first[name], last[name])
