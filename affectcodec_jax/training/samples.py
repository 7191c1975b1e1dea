"""Held-out clips through the codec at every rate, for the ear and the eye."""

from affectcodec_jax.audio import at_codec_level
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
  originals = [at_codec_level(c['audio']) for c in clips]

  def sample(params):
    codes = inference.encode(params, frozen, originals)
    out = {f'{i}_original': audio for i, audio in enumerate(originals)}
    for m in config.rates:
      for i, decoded in enumerate(inference.decode(params, [c[:, :m] for c in codes])):
        out[f'{i}_{m}_stages'] = decoded[:len(originals[i])]
    return out

  return sample
