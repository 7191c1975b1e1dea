"""Held-out clips through the codec at every rate, for the ear and the eye."""

import numpy as np

from affectcodec_jax.audio import level_gain
from affectcodec_jax.inference.pieces import Inference


def make_sampler(config, frozen, clips):
  """A function of codec parameters that encodes and decodes `clips`.

  Args:
    config: the configuration.
    frozen: parameters of the emotion networks.
    clips: items of a source, `audio` `[samples]` each.

  Returns:
    params -> {'0_original': `[samples]`, '0_2_stages': `[samples]`, …}, at the codec's level.
  """
  inference = Inference(config, frozen)
  levelled = [np.float32(c['audio'] * 10 ** (level_gain(c['audio']) / 20)) for c in clips]

  def sample(params):
    codes = inference.encode(params, frozen, levelled)
    out = {f'{i}_original': audio for i, audio in enumerate(levelled)}
    for m in config.rates:
      for i, decoded in enumerate(inference.decode(params, [c[:, :m] for c in codes])):
        out[f'{i}_{m}_stages'] = decoded[:len(levelled[i])]
    return out

  return sample
