"""Mel loss on held-out speech while a codec trains: where it parts from the training's, it overfits."""

import jax
import jax.numpy as jnp

from affectcodec_jax.emotion.teachers import encoder_features
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.training import losses


def make_validator(config, audio):
  """A function of codec parameters and frozen networks to mel losses on held-out crops.

  Args:
    config: the configuration.
    audio: held-out crops, `[clips, samples]`.

  Returns:
    (params, frozen) -> {'valid/mel_2_stages': scalar, …}, one for each rate: a step's loss/mel of clips
    at that rate, with full rounding and predicted pitch.
  """
  codec = make_codec(config)
  audio = jnp.asarray(audio)

  @jax.jit
  def validate(params, frozen):
    def run(method, *args):
      return codec.apply({'params': params}, *args, method=method)

    features = encoder_features(config, frozen, audio)
    u = run(Codec.analyse, audio, features, jnp.ones(features.shape[:2], bool))
    values = run(Codec.quantize, u).values
    targets = losses.mel_targets(audio, config.loss.mel_floor)

    def mel(stages):
      decoded = run(Codec.synthesise, run(Codec.latent, values[:stages]))
      return losses.mel_distance(losses.mel_targets(decoded, config.loss.mel_floor), targets).mean()

    return {f'valid/mel_{m}_stages': mel(m) for m in config.rates}

  return validate
