"""Codes nearer to a recording than the encoder's: its latent is moved by gradient descent while encoding.

The encoder finds the latent U in one pass, as well as it has learnt to. Here the acoustic part of U is then
itself what is optimised, for one recording: through the straight-through quantiser and the decoder, by the
distance of what is decoded from the recording (Campos et al., arXiv 1906.01223; Yang et al., arXiv
2006.04240). Tokens stay tokens: every decoder reads them at its own speed. U_e is not moved, so with a
block-diagonal quantiser the emotion digits are the encoder's. A step costs a decoding and its gradient.
"""

import functools
import operator

import jax
import jax.numpy as jnp

from affectcodec_jax import losses
from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.models import source_filter
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.models.context import decoder_context
from affectcodec_jax.spectral import stft

MAX_STEPS = 1000
LEARNING_RATE = 0.1  # Adam's, falling to 0 by a cosine; U has about unit variance
BETAS = 0.5, 0.9  # of Adam: in so few steps its usual memory comes too late (docs/sound.md)
# Weights of the distance. The mel loss alone gains less in mel distance and ViSQOL, compressed magnitudes
# alone less in ESTOI (docs/sound.md#refining-the-codes-measured). The mel loss says little of pitch.
MEL, MAGNITUDE, PITCH, VOICING = 8.0, 50.0, 4.0, 2.0
_WINDOWS = (256, 512, 1024)  # of the compressed magnitudes
_POWER = 0.3


def check_steps(steps):
  """The number of steps of a search; 0 is none.

  Raises:
    UserError: it is no such number.
  """
  try:
    count = -1 if isinstance(steps, bool) else operator.index(steps)
  except TypeError:
    count = -1
  if not 0 <= count <= MAX_STEPS:
    raise UserError(f'refine {steps!r}: a whole number of steps from 0 to {MAX_STEPS}; 20 are enough')
  return count


def make_refine(config):
  """The compiled search of a configuration's codec.

  Returns:
    A function of
      params: the codec's parameters;
      u: the encoder's U of a piece and of the decoder's context around it, `[batch, T + 2 context, dim]`;
      audio: of the piece, at the codec's level, `[batch, T * 320]`;
      first, last: which frames of `u` are the first and the last of the recording or, where it goes on
        beyond the context, of `u`, int32 `[batch]`;
      steps: their number;
      stages: that are decoded, static.
    It gives codes `[batch, T, stages]`, of which those of the recording's frames count: the encoder's own
    where the search finds none that are nearer.
  """
  codec, context = make_codec(config), decoder_context(config.model)
  acoustic = config.model.emotion_dim  # where U_a begins
  has_source = config.model.backbone == 'lite'

  @functools.partial(jax.jit, static_argnames='stages')
  def refine(params, u, audio, first, last, steps, stages):
    import optax  # while compiling: those who encode and decode without a search start without it
    apply = functools.partial(codec.apply, {'params': params})
    piece = slice(context, u.shape[1] - context)
    size = u.shape[1] - 2 * context
    # Beyond its ends a recording stays at its first and last frame, as in decoding: [B, T + 2 context].
    at = jnp.clip(jnp.arange(u.shape[1]), first[:, None], last[:, None])
    counts = jnp.arange(context, context + size) <= last[:, None]  # [B, T]: frames of the recording
    share = counts.mean(axis=1)  # of the piece that is the recording's, [B]
    audible = jnp.repeat(counts, HOP_LENGTH, axis=1)  # [B, T * 320]
    mels, magnitudes = _spectra(config, jnp.where(audible, audio, 0.0))

    def quantize(delta):
      moved = u.at[:, piece, acoustic:].add(delta)
      return apply(jnp.take_along_axis(moved, at[..., None], axis=1), method=Codec.quantize)

    def latent(quantized, stages):
      return apply(quantized.values[:stages], method=Codec.latent)  # [B, T + 2 context, dim]

    none = jnp.zeros_like(u[:, piece, acoustic:])
    if has_source:  # pitch and voicing are to be those decoded from all stages of the encoder's codes
      encoded = apply(latent(quantize(none), config.model.num_stages), method=Codec.controls)
      pitch, voiced = jax.nn.softmax(encoded.pitch)[:, piece], jax.nn.sigmoid(encoded.voicing)[:, piece]

    def distances(delta, position):
      """How far each recording is from what is decoded, `[B]`; `position` draws the noise of the source."""
      decodable, total = latent(quantize(delta), stages), 0.0
      if has_source:
        controls = apply(decodable, method=Codec.controls)
        increments = source_filter.predicted_increments(controls.pitch)
        start, zero = jnp.full(len(u), context, jnp.int32), jnp.zeros(len(u), jnp.int32)
        decoded = source_filter.render(
            controls, source_filter.Source(increments, start, phase=zero, position=zero + position))
        surprise = -jnp.sum(pitch * jax.nn.log_softmax(controls.pitch)[:, piece], axis=-1)  # [B, T]
        total += PITCH * jnp.mean(surprise * voiced * counts, axis=1)
        logits = controls.voicing[:, piece]
        total += VOICING * jnp.mean((jax.nn.softplus(logits) - voiced * logits) * counts, axis=1)
      else:
        decoded = apply(decodable, method=Codec.synthesise)
      decoded = decoded[:, context * HOP_LENGTH:(context + size) * HOP_LENGTH]
      decoded_mels, decoded_magnitudes = _spectra(config, jnp.where(audible, decoded, 0.0))
      total += MEL * losses.mel_distance(decoded_mels, mels)
      total += MAGNITUDE * losses.mel_distance(decoded_magnitudes, magnitudes)
      return total / share

    gradient = jax.grad(lambda *args: distances(*args).sum())
    adam = optax.scale_by_adam(*BETAS)

    def step(i, carry):
      delta, state = carry
      # Another drawing of the noise in every step: codes that fit one would suit no other.
      position = jax.random.randint(jax.random.fold_in(jax.random.key(0), i), (), 0, 2 ** 30)
      update, state = adam.update(gradient(delta, position), state)
      rate = 0.5 * LEARNING_RATE * (1 + jnp.cos(jnp.pi * i / steps))
      return delta - rate * update, state

    found, _ = jax.lax.fori_loop(0, steps, step, (none, adam.init(none)))
    # One after another, so that there is one program of it: `[2, B]`.
    after, before = jax.lax.map(lambda delta: distances(delta, 0), jnp.stack([found, none]))
    nearer = (after < before)[:, None, None]
    return quantize(jnp.where(nearer, found, none)).indices[:, piece, :stages]

  return refine


def _spectra(config, audio):
  """Log-mel spectrograms of `[batch, samples]`, and STFT magnitudes to the power 0.3, at several scales."""
  magnitudes = []
  for window in _WINDOWS:
    real, imag = stft(audio, window, window // 4)
    magnitudes.append((real ** 2 + imag ** 2 + 1e-7) ** (_POWER / 2))  # [B, frames, bins]
  return losses.mel_targets(audio, losses.mel_floor(config)), magnitudes
