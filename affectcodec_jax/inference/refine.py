"""Codes nearer to a recording than the encoder's: its latent is moved by gradient descent while encoding.

The encoder finds the latent U in one pass, as well as it has learnt to. Here the acoustic part of U is then
itself what is optimised, for one recording: through the straight-through quantiser and the decoder, by the
distance of what is decoded from the recording (Campos et al., arXiv 1906.01223; Yang et al., arXiv
2006.04240). Tokens stay tokens: every decoder reads them at its own speed. U_e is not moved, so with a
block-diagonal quantiser the emotion digits are the encoder's. A step costs a decoding and its gradient.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from affectcodec_jax import losses
from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.models import source_filter
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.models.context import decoder_context
from affectcodec_jax.spectral import stft

MAX_STEPS = 1000
LEARNING_RATE = 0.05  # Adam's, falling to 0 by a cosine; U has about unit variance
# Weights of the distance. A mel loss alone gains less in PESQ, compressed magnitudes alone less in the mel
# distance; without a target for pitch it drifts (docs/sound.md#refining-the-codes-measured).
MEL, MAGNITUDE, PITCH, VOICING, COMMITMENT = 8.0, 50.0, 4.0, 2.0, 1.0
_WINDOWS = (256, 512, 1024)  # of the compressed magnitudes
_POWER = 0.3


def check_steps(steps):
  """Refuses what is not a number of steps of the search; 0 is none.

  Raises:
    UserError: it is not.
  """
  if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= MAX_STEPS:
    raise UserError(f'refine {steps!r}: a whole number of steps from 0 to {MAX_STEPS}; 50 are enough')


def make_refine(config):
  """The compiled search: `refine(params, u, audio, frames, steps, stages)`.

  Its arguments are the codec's parameters; U `[batch, T, dim]`; levelled audio `[batch, T * 320]`; how many
  of the T frames each recording has, int32 `[batch]`; the number of steps; and the number of stages that
  are to be decoded, static. It returns codes `[batch, T, stages]`, of which those of the recording's frames
  count. A recording is refined as it would be by itself, whatever else is in the batch.
  """
  codec, around = make_codec(config), decoder_context(config.model)
  acoustic = config.model.emotion_dim  # where U_a begins
  has_source = config.model.backbone == 'lite'

  @functools.partial(jax.jit, static_argnames='stages')
  def refine(params, u, audio, frames, steps, stages):
    apply = functools.partial(codec.apply, {'params': params})
    size = u.shape[1]
    # Beyond its ends a recording stays at its first and last frame, as in decoding: [B, T + 2 context].
    at = jnp.clip(jnp.arange(-around, size + around), 0, frames[:, None] - 1)
    inside = jnp.arange(size * HOP_LENGTH) < frames[:, None] * HOP_LENGTH  # [B, T * 320]
    targets = _spectra(config, jnp.where(inside, audio, 0.0))

    def around_frames(latent):
      return jnp.take_along_axis(latent, at[..., None], axis=1)  # [B, T, d] -> [B, T + 2 context, d]

    if has_source:  # pitch and voicing are those decoded from all stages of the encoder's codes
      every = apply(apply(u, method=Codec.quantize).values, method=Codec.latent)
      encoded = apply(around_frames(every), method=Codec.controls)
      pitch, voiced = jax.nn.softmax(encoded.pitch), jax.nn.sigmoid(encoded.voicing)

    def distance(delta, position):
      """Sum over the batch of each recording's distance; `position` draws the noise of the source."""
      quantized = apply(u.at[..., acoustic:].add(delta), method=Codec.quantize)
      latent = around_frames(apply(quantized.values[:stages], method=Codec.latent))
      total = COMMITMENT * quantized.commitment[:stages].mean(axis=0)  # [B]
      if has_source:
        controls = apply(latent, method=Codec.controls)
        source = source_filter.beginning(source_filter.predicted_increments(controls.pitch))
        decoded = source_filter.render(controls, source._replace(
            start=jnp.full_like(source.start, around), position=jnp.full_like(source.start, position)))
        surprise = -jnp.sum(pitch * jax.nn.log_softmax(controls.pitch), axis=-1)  # [B, T + 2 context]
        total += PITCH * jnp.mean(surprise * voiced, axis=-1)
        total += VOICING * losses.voicing_distance(controls.voicing, voiced)
      else:
        decoded = apply(latent, method=Codec.synthesise)
      decoded = decoded[:, around * HOP_LENGTH:(around + size) * HOP_LENGTH]
      mels, magnitudes = _spectra(config, jnp.where(inside, decoded, 0.0))
      total += MEL * losses.mel_distance(mels, targets[0])
      total += MAGNITUDE * losses.mel_distance(magnitudes, targets[1])
      return total.sum()

    adam = optax.scale_by_adam()

    def step(i, carry):
      delta, state = carry
      # Another drawing of the noise in every step: codes that fit one would suit no other.
      position = jax.random.randint(jax.random.fold_in(jax.random.key(0), i), (), 0, 2 ** 30)
      update, state = adam.update(jax.grad(distance)(delta, position), state)
      rate = 0.5 * LEARNING_RATE * (1 + jnp.cos(jnp.pi * i / steps))
      return delta - rate * update, state

    delta = jnp.zeros_like(u[..., acoustic:])
    delta, _ = jax.lax.fori_loop(0, steps, step, (delta, adam.init(delta)))
    return apply(u.at[..., acoustic:].add(delta), method=Codec.quantize).indices[..., :stages]

  return refine


def _spectra(config, audio):
  """Log-mel spectrograms of `[batch, samples]`, and STFT magnitudes to the power 0.3, at several scales."""
  magnitudes = []
  for window in _WINDOWS:
    real, imag = stft(audio, window, window // 4)
    magnitudes.append((real ** 2 + imag ** 2 + 1e-7) ** (_POWER / 2))  # [B, frames, bins]
  return losses.mel_targets(audio, config.loss.mel_floor), magnitudes
