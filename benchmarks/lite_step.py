"""Training `configs/lite.py`: seconds of audio a second of wall time, of the whole step and of its parts.

A part is the forward pass and the gradient of that part alone, by what it is trained for: the networks by
their parameters, the mel loss and the cycle's emotion teacher by the audio.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax import config as config_lib
from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.emotion.teachers import teacher_features
from affectcodec_jax.inference import weights
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.training import losses
from affectcodec_jax.training.state import create_state, make_optimizer
from affectcodec_jax.training.step import train_step
from benchmarks.measure import in_turn, rows
from configs import lite


def run(threads, rounds):
  """Rows of the steps and of the parts."""
  del threads
  config = lite.get_config()
  rng = np.random.default_rng(0)
  shape = (config.train.batch_size, config_lib.crop_samples(config))
  frames = (shape[0], shape[1] // HOP_LENGTH)
  batch = {'audio': 0.06 * rng.normal(size=shape).astype(np.float32), 'voiced': np.ones(frames, np.float32),
           'f0': rng.uniform(80, 300, frames).astype(np.float32)}
  frozen = {'teacher': weights.load_teacher(config, config.teacher.path)}
  state = jax.jit(functools.partial(create_state, config))(jax.random.key(0), frozen, batch['audio'])

  calls = {}
  for name, adversarial in (('step', False), ('step with a discriminator', True)):
    step = jax.jit(functools.partial(train_step, config=config, adversarial=adversarial))
    calls[name] = functools.partial(step, state, frozen, batch)
  for name, (function, *args) in parts(config, state, frozen, batch).items():
    calls[name] = functools.partial(jax.jit(function), *args)
  calls = {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}
  seconds = in_turn(calls, rounds)
  audio_seconds = batch['audio'].size / 16000
  speeds = {name: round(audio_seconds / statistics.median(values), 1) for name, values in seconds.items()}
  yield from rows('configs/lite.py', seconds, audio_per_second=speeds)


def parts(config, state, frozen, batch):
  """(function, its arguments) of each part by name."""
  codec, audio = make_codec(config), batch['audio']
  call = lambda method, *args: codec.apply({'params': state.params}, *args, method=method)
  square = lambda tree: sum(jnp.sum(x ** 2) for x in jax.tree.leaves(tree))
  by_params = lambda method, *args: jax.grad(
      lambda p: square(codec.apply({'params': p}, *args, method=method)))

  features = jax.jit(functools.partial(teacher_features, config))(frozen, audio)
  mask = np.ones(features.shape[:2], bool)
  u = jax.jit(lambda: call(Codec.analyse, audio, features, mask))()
  latent = jax.jit(lambda: call(Codec.latent, call(Codec.quantize, u).values))()
  targets = losses.mel_targets(audio, config.loss.mel_floor)
  follow = np.zeros(len(audio), bool)

  def mel(x):
    return losses.mel_distance(losses.mel_targets(x, config.loss.mel_floor), targets).sum()

  def decoded(p, z):
    out = codec.apply({'params': p}, z, batch['f0'], follow, method=Codec.synthesise_along)
    return square(out[0])

  def optimise(grads):
    return make_optimizer(config, config.train.lr).update(grads, state.opt_state, state.params)

  return {
      'encoder': (by_params(Codec.analyse, audio, features, mask), state.params),
      'quantiser': (jax.grad(lambda u: square(call(Codec.latent, call(Codec.quantize, u).values))), u),
      'decoder': (jax.grad(decoded, argnums=(0, 1)), state.params, latent),
      'mel loss': (jax.grad(mel), 0.9 * audio),
      'features of the audio': (functools.partial(teacher_features, config, frozen), audio),
      'features of what is decoded': (
          jax.grad(lambda x: square(teacher_features(config, frozen, x))), audio),
      'optimiser': (optimise, state.params),
  }
