"""Held-out clips through the codec at every rate, for the ear and the eye."""

import jax
import numpy as np

from affectcodec_jax.audio import level_gain
from affectcodec_jax.models.codec import Codec, hop_length
from affectcodec_jax.models.teacher import teacher_features
from affectcodec_jax.training.state import make_codec


def decode_samples(config, params, teacher, clips):
  """Encodes and decodes clips in one batch.

  Args:
    config: the configuration.
    params: codec parameters.
    teacher: teacher parameters.
    clips: items of a source, `audio` `[samples]` each.

  Returns:
    {'0_original': `[samples]`, '0_2_stages': …} for each clip, at the codec's level.
  """
  hop = hop_length(config.model)
  frames = -(-max(len(c['audio']) for c in clips) // hop)
  audio = np.zeros((len(clips), frames * hop), np.float32)
  mask = np.zeros((len(clips), frames), bool)
  for i, clip in enumerate(clips):
    n = len(clip['audio'])
    audio[i, :n] = clip['audio'] * 10 ** (level_gain(clip['audio']) / 20)
    mask[i, :-(-n // hop)] = True
  decoded = _round_trip(config, params, teacher, audio, mask)
  out = {}
  for i, clip in enumerate(clips):
    n = len(clip['audio'])
    out[f'{i}_original'] = audio[i, :n]
    for stages, rate in zip(config.rates, decoded):
      out[f'{i}_{stages}_stages'] = np.asarray(rate[i, :n])
  return out


def _round_trip(config, params, teacher, audio, mask):
  """`[B, L]` to a list over rates of `[B, L]`."""
  codec = make_codec(config)

  @jax.jit
  def analyse(params, teacher, audio, mask):
    features = teacher_features(teacher, audio, config.teacher.dim)
    u = codec.apply({'params': params}, audio, features, mask, method=Codec.analyse)
    return codec.apply({'params': params}, u, method=Codec.quantize).stages

  @jax.jit
  def synthesise(params, latent):
    return codec.apply({'params': params}, latent, method=Codec.synthesise)

  stages = analyse(params, teacher, audio, mask)  # [K, B, T, d]
  return [synthesise(params, stages[:m].sum(0)) for m in config.rates]
