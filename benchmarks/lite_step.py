"""Training `configs/lite.py`: seconds of audio a second of wall time, of the whole step and of its parts.

A part is the forward pass and the gradient of that part alone, by what it is trained for: the networks by
their parameters, the mel loss and the cycle's emotion teacher by the audio. Beside the seconds: operations
as XLA counts them before it optimises, and the share they are of a large matmul's speed.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax import config as config_lib
from affectcodec_jax import losses
from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.emotion.teachers import teacher_features
from affectcodec_jax.inference import weights
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.training.state import create_state, make_optimizer
from affectcodec_jax.training.step import train_step
from benchmarks.measure import in_turn, matmul_peak, rows, share_of_peak
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

  programs = {
      name: (functools.partial(train_step, config=config, adversarial=adversarial), state, frozen, batch)
      for name, adversarial in (('step', False), ('step with a discriminator', True))}
  programs |= parts(config, state, frozen, batch)
  programs = {name: (jax.jit(function), args) for name, (function, *args) in programs.items()}
  seconds = in_turn({name: lambda f=f, args=args: jax.block_until_ready(f(*args))
                     for name, (f, args) in programs.items()}, rounds)
  audio_seconds = batch['audio'].size / 16000
  speeds = {name: round(audio_seconds / statistics.median(values), 1) for name, values in seconds.items()}
  flops = {name: f.lower(*args).cost_analysis()['flops'] for name, (f, args) in programs.items()}
  peak, shares = matmul_peak(), {}
  for name, values in seconds.items():
    shares |= share_of_peak(flops[name], {name: values}, peak)
  yield from rows('configs/lite.py', seconds, audio_per_second=speeds, share_of_peak=shares,
                  gflop={name: round(f / 1e9, 2) for name, f in flops.items()},
                  peak_gflops=round(peak / 1e9, 1))


def parts(config, state, frozen, batch):
  """(function, its arguments) of each part by name; arrays are arguments, or the compiler folds them."""
  codec, audio, params, floor = make_codec(config), batch['audio'], state.params, config.loss.mel_floor
  features = jax.jit(functools.partial(teacher_features, config))(frozen, audio)
  mask = np.ones(features.shape[:2], bool)
  use_true_pitch = np.zeros(len(audio), bool)

  def call(params, method, *args):
    return codec.apply({'params': params}, *args, method=method)

  def square(x):
    return jnp.sum(x ** 2)

  def encoder(params, *inputs):
    return square(call(params, Codec.analyse, *inputs))

  def quantiser(u, params):
    return square(quantised(u, params))

  def quantised(u, params):
    return call(params, Codec.latent, call(params, Codec.quantize, u).values)

  def decoder(params, latent, *pitch):
    return square(call(params, Codec.synthesise_with_pitch, latent, *pitch)[0])

  def mel(decoded, audio):
    return losses.mel_distance(losses.mel_targets(decoded, floor), losses.mel_targets(audio, floor)).sum()

  def cycle(decoded, frozen):
    return square(teacher_features(config, frozen, decoded))

  def optimise(grads, opt_state, params):
    return make_optimizer(config, config.train.lr).update(grads, opt_state, params)

  u = jax.jit(lambda params, *inputs: call(params, Codec.analyse, *inputs))(params, audio, features, mask)
  latent = jax.jit(quantised)(u, params)
  return {
      'encoder': (jax.grad(encoder), params, audio, features, mask),
      'quantiser': (jax.grad(quantiser), u, params),
      'decoder': (jax.grad(decoder, argnums=(0, 1)), params, latent, batch['f0'], use_true_pitch),
      'mel loss': (jax.grad(mel), 0.9 * audio, audio),
      'features of the audio': (functools.partial(teacher_features, config), frozen, audio),
      'features of what is decoded': (jax.grad(cycle), audio, frozen),
      'optimiser': (optimise, params, state.opt_state, params),
  }
