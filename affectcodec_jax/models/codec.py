"""AffectCodec whole: encoder, conditioning, partition, quantiser, decoders.

Frames are 50 Hz (hop 320 at 16 kHz). The teacher is not part of it: its features come in.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.models import source_filter
from affectcodec_jax.models.bd_rfsq import BDRFSQ
from affectcodec_jax.models.conditioning import Adapter, AttentionPool, EmotionDecoder, FiLM
from affectcodec_jax.models.dac import Decoder, Encoder
from affectcodec_jax.models.discriminator import Discriminator
from affectcodec_jax.models.layers import Conv
from affectcodec_jax.models.lite import LiteEncoder
from affectcodec_jax.models.rvq import RVQ
from affectcodec_jax.tokens.entropy import MAX_DIGIT_BITS


class Codec(nn.Module):
  """The trainable codec.

  Attributes:
    config: the `model` section of the configuration (see configs/base.py).
    feature_dim: width of the teacher's features.
    remat: recompute encoder's and decoder's activations in the backward pass, to save memory.
    stage_start, stage_fade: how the quantiser's stages begin, see `BDRFSQ`.
  """

  config: dict
  feature_dim: int
  remat: bool = False
  stage_start: str = 'spread'
  stage_fade: float = 1.0

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.compute_dtype)
    if c.backbone == 'lite':
      self.encoder = LiteEncoder(c.lite.width, c.lite.encoder_depth, c.acoustic_width, dtype, self.remat)
      self.decoder = source_filter.SourceFilterDecoder(
          c.lite.width, c.lite.decoder_depth, dtype, self.remat)
    else:
      self.encoder = Encoder(c.encoder_dim, c.strides, c.acoustic_width, dtype, self.remat)
      self.decoder = Decoder(c.decoder_dim, tuple(reversed(c.strides)), dtype, self.remat)
    self.adapter = Adapter(c.adapter_dim, c.adapter_layers, c.adapter_kernel, dtype)
    if c.conditioning:
      self.pool = AttentionPool()
      self.film = FiLM()
    self.to_emotion = Conv(c.emotion_dim, (1,), dtype=dtype)
    self.to_acoustic = Conv(c.acoustic_dim, (1,), dtype=dtype)
    self.quantizer = make_quantizer(c, self.stage_start, self.stage_fade)
    self.emotion_decoder = EmotionDecoder(self.feature_dim, c.adapter_dim, dtype)

  def analyse(self, audio, features, mask):
    """Latent U = [U_e, U_a] before quantisation.

    Args:
      audio: `[batch, samples]`, samples a multiple of the hop length.
      features: teacher features `[batch, frames, feature_dim]`.
      mask: `[batch, frames]` bool, False on padding.

    Returns:
      `[batch, frames, emotion_dim + acoustic_dim]` float32.
    """
    emotion = self.adapter(features)  # E: [B, T, adapter_dim]
    embedding = self.pool(emotion, mask) if self.config.conditioning else None
    return self.partition(self.to_emotion(emotion), self.encoder(audio), embedding)

  def partition(self, u_e, acoustic, embedding):
    """U = [U_e, U_a] of U_e, the encoder output A, and an embedding `[batch, adapter_dim]`."""
    if self.config.conditioning:
      acoustic = self.film(acoustic, embedding)
    return jnp.concatenate([u_e, self.to_acoustic(acoustic)], axis=-1).astype(jnp.float32)

  def analyse_emotion(self, features, mask, context):
    """The emotion path of a piece of a recording that has `context` frames too many on either side.

    Returns:
      U_e `[batch, frames - 2 * context, emotion_dim]` and the piece's `AttentionPool.part`.
    """
    inner = slice(context, features.shape[1] - context)
    emotion = self.adapter(features)[:, inner]
    part = self.pool.part(emotion, mask[:, inner]) if self.config.conditioning else ()
    return self.to_emotion(emotion), part

  def analyse_acoustic(self, audio, u_e, embedding, context):
    """U of such a piece, from audio `[batch, samples]`, its U_e and the recording's embedding."""
    acoustic = self.encoder(audio)
    return self.partition(u_e, acoustic[:, context:acoustic.shape[1] - context], embedding)

  def quantize(self, u, rounding=1.0):
    """`Quantized` of U `[batch, frames, dim]`; `rounding` as in `fsq.quantize`."""
    return self.quantizer(u, rounding)

  def lookup(self, indices):
    """Latent at as many stages as `indices` `[batch, frames, m]` has: `[batch, frames, dim]`."""
    return self.quantizer.latent(self.quantizer.lookup(indices))

  def latent(self, values):
    """Latent `[batch, frames, dim]` of the first stages' `Quantized.values` `[m, batch, frames, f]`."""
    return self.quantizer.latent(values)

  def synthesise(self, latent, source=None):
    """Quantised latent `[batch, frames, dim]` to audio `[batch, frames * hop]`.

    Args:
      latent: the latent.
      source: of the lite backbone, the `source_filter.Source`; None is a recording's beginning at the
        pitch that the latent says. The DAC-style decoder has no use for one.
    """
    decoded = self.decoder(latent)
    if self.config.backbone != 'lite':
      return decoded
    if source is None:
      source = source_filter.beginning(source_filter.predicted_increments(decoded.pitch))
    return source_filter.render(decoded, source)

  def controls(self, latent):
    """`source_filter.Controls` of the lite backbone, of a latent `[batch, frames, dim]`."""
    return self.decoder(latent)

  def pitch(self, latent):
    """Phase increments of the lite backbone's source, int32 `[batch, frames]`."""
    return source_filter.predicted_increments(self.decoder(latent).pitch)

  def synthesise_with_pitch(self, latent, f0, use_true_pitch):
    """Audio and `Controls` of the lite backbone in training.

    Args:
      latent: `[batch, frames, dim]`.
      f0: true fundamental in Hz, everywhere above 0, `[batch, frames]`.
      use_true_pitch: bool `[batch]`, whether a clip's source has that pitch, or the predicted one.
    """
    controls = self.decoder(latent)
    pitch = jnp.where(use_true_pitch[:, None], source_filter.increments(source_filter.class_of(f0)),
                      source_filter.predicted_increments(controls.pitch))
    return source_filter.render(controls, source_filter.beginning(pitch)), controls

  def emotion_features(self, latent):
    """Teacher features `[batch, frames, feature_dim]` predicted from the emotion block alone."""
    return self.emotion_decoder(latent[..., :self.config.emotion_dim])

  def __call__(self, audio, features):
    """Runs every part once; for initialisation."""
    mask = jnp.ones(features.shape[:2], bool)
    quantized = self.quantize(self.analyse(audio, features, mask))
    latent = self.latent(quantized.values)
    return self.synthesise(latent), self.emotion_features(latent), quantized

  def calibrate_quantizer(self, u):
    """Quantiser parameters fitted to a first latent (see `calibrate` of each)."""
    return self.quantizer.calibrate(u)


def make_codec(config):
  """The codec that `config` describes."""
  t = config.train  # older runs lack some of these
  return Codec(config.model, config.teacher.dim, t.get('remat', False), t.get('stage_start', 'spread'),
               t.get('stage_fade', 1.0))


def make_discriminator(config):
  """The discriminator that `config` describes."""
  d = config.discriminator
  return Discriminator(tuple(d.n_ffts), d.filters, jnp.dtype(config.model.compute_dtype))


def init_params(config, rng):
  """Untrained codec and discriminator parameters, shapes as the config says."""
  codec, discriminator = make_codec(config), make_discriminator(config)
  frames = 12  # of a short clip
  audio = jnp.zeros((1, frames * HOP_LENGTH))
  features = jnp.zeros((1, frames, config.teacher.dim))
  codec_rng, disc_rng = jax.random.split(rng)
  params = codec.init(codec_rng, audio, features)['params']
  return params, discriminator.init(disc_rng, audio)['params']


def make_quantizer(c, stage_start='spread', stage_fade=1.0):
  """BD-RFSQ, or one of the paper's two comparisons, by `quantizer` in the config."""
  if c.quantizer == 'rvq':
    return RVQ(c.emotion_dim + c.acoustic_dim, c.num_stages, 2 ** bits_per_stage(c),
               c.rvq_codebook_dim)
  projection = {'bd_rfsq': 'block', 'full_rfsq': 'full'}[c.quantizer]
  return BDRFSQ((c.emotion_dim, c.acoustic_dim),
                (tuple(c.emotion_levels), tuple(c.acoustic_levels)), c.num_stages, projection, stage_start,
                stage_fade)


def bits_per_stage(c) -> int:
  """Bits of one composite index: 15 for the paper's 2^3 * 4^6 codes."""
  return math.ceil(math.log2(math.prod(c.emotion_levels) * math.prod(c.acoustic_levels)))


def digit_bits(c) -> tuple[int, ...]:
  """Bits of each digit of a composite index, the lowest first: how entropy coding reads it.

  One bit each where digits do not fall on bits: levels that are no powers of two, or an RVQ's code.
  """
  bits = [n.bit_length() - 1 for n in (*c.emotion_levels, *c.acoustic_levels)]
  whole = all(n == 1 << b for n, b in zip((*c.emotion_levels, *c.acoustic_levels), bits))
  if c.quantizer == 'rvq' or not whole or max(bits) > MAX_DIGIT_BITS:
    return (1,) * bits_per_stage(c)
  return tuple(bits)
