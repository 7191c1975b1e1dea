"""Held-out clips through the codec at every rate, for the ear and the eye."""

import jax
import numpy as np

from affectcodec_jax.audio import level_gain
from affectcodec_jax.models.codec import Codec, hop_length
from affectcodec_jax.teachers import encoder_features
from affectcodec_jax.training.state import make_codec


def make_sampler(config, frozen, clips):
  """A function of codec parameters that encodes and decodes `clips` in one batch.

  Args:
    config: the configuration.
    frozen: parameters of the emotion networks.
    clips: items of a source, `audio` `[samples]` each.

  Returns:
    params -> {'0_original': `[samples]`, '0_2_stages': `[samples]`, …}, at the codec's level.
  """
  codec, hop = make_codec(config), hop_length(config.model)
  frames = -(-max(len(c['audio']) for c in clips) // hop)
  audio = np.zeros((len(clips), frames * hop), np.float32)
  mask = np.zeros((len(clips), frames), bool)
  for i, clip in enumerate(clips):
    n = len(clip['audio'])
    audio[i, :n] = clip['audio'] * 10 ** (level_gain(clip['audio']) / 20)
    mask[i, :-(-n // hop)] = True

  @jax.jit
  def analyse(params):
    features = encoder_features(config, frozen, audio, mask)
    u = codec.apply({'params': params}, audio, features, mask, method=Codec.analyse)
    return codec.apply({'params': params}, u, method=Codec.quantize).stages  # [K, B, T, d]

  @jax.jit
  def synthesise(params, latent):
    latent = latent * mask[..., None]  # as `decode` does
    return codec.apply({'params': params}, latent, method=Codec.synthesise)  # [B, L]

  def sample(params):
    stages = analyse(params)
    out = {}
    for m in config.rates:
      decoded = np.asarray(synthesise(params, stages[:m].sum(0)))
      for i, clip in enumerate(clips):
        n = len(clip['audio'])
        out[f'{i}_original'] = audio[i, :n]
        out[f'{i}_{m}_stages'] = decoded[i, :n]
    return out

  return sample
