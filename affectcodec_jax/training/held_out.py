"""Held-out speech while a codec trains: its mel loss at every rate, and clips for the ear and the eye."""

import jax
import jax.numpy as jnp

from affectcodec_jax import losses
from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.config import crop_samples
from affectcodec_jax.data import pipeline
from affectcodec_jax.emotion.teachers import encoder_features
from affectcodec_jax.inference.pieces import Inference
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.training.metric_writer import write_clips


def make_listener(config, source, clips, frozen, folder, writer, fetch):
  """A function of (step, averaged parameters on the devices) that writes held-out losses and samples.

  Args:
    config: the configuration.
    source: held-out speech.
    clips: items of it to decode for samples.
    frozen: parameters of the emotion networks.
    folder: of the run; samples go to `folder`/samples.
    writer: `MetricWriter`; None in a process that writes nothing, but has a part in `fetch`.
    fetch: of `Parallel`.
  """
  sampler = make_sampler(config, frozen, clips) if writer and clips else None
  validator = None
  if writer and config.train.valid_clips:
    validator = make_validator(config, pipeline.eval_crops(
        source, config.data, config.train.valid_clips, crop_samples(config), config.seed))

  def listen(step, ema):
    if not clips and not config.train.valid_clips:
      return
    ema = fetch(ema)
    if validator:
      writer.write(step, {name: float(value) for name, value in validator(ema, frozen).items()})
    if sampler:
      write_clips(folder / 'samples' / f'step_{step:07d}', sampler(ema))

  return listen


def make_validator(config, audio):
  """A function of codec parameters and frozen networks to mel losses on held-out crops.

  Where they part from the training's, the codec overfits.

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
