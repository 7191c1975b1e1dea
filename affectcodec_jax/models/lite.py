"""The lite backbone: an encoder on spectral frames and a ConvNeXt decoder with an inverse-STFT head.

Everything runs at the codec's 50 frames a second, so it needs a small part of the operations of the
DAC-style networks. The decoder is that of Vocos (arXiv 2306.00814, section 3): magnitudes and phases
of short spectra, put together by overlap-add. Layout `[batch, frames, channels]`.
"""

from flax import linen as nn
import jax.numpy as jnp

from affectcodec_jax.spectral import istft, stft

_HOP = 320
_FINE = 4 * _HOP  # 80 ms: resolves harmonics, and is the decoder's synthesis window
_QUICK = _HOP  # 20 ms, twice a frame: resolves plosives and glottal pulses of low voices
_MAX_MAGNITUDE = 100.0  # a full-scale sine reaches 320 in the fine spectrum


class DepthwiseConv(nn.Module):
  """One filter of `kernel` taps a channel, by shifted multiplies (a grouped conv is slow on CPU)."""

  kernel: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    c, t = x.shape[-1], x.shape[1]
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal', in_axis=0, out_axis=())
    w = self.param('kernel', init, (self.kernel, c)).astype(self.dtype)
    b = self.param('bias', nn.initializers.zeros, (c,)).astype(self.dtype)
    half = self.kernel // 2
    x = jnp.pad(x.astype(self.dtype), ((0, 0), (half, self.kernel - 1 - half), (0, 0)))
    return sum(w[i] * x[:, i:i + t] for i in range(self.kernel)) + b


class ConvNeXtBlock(nn.Module):
  """Depthwise conv k7, LayerNorm, 4x MLP, scaled and added (arXiv 2201.03545): keeps the shape."""

  scale: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    y = DepthwiseConv(7, self.dtype)(x)
    y = nn.LayerNorm(dtype=self.dtype)(y)
    y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(y))
    y = nn.Dense(width, dtype=self.dtype)(y)
    return x + self.param('scale', nn.initializers.constant(self.scale), (width,)) * y


class LiteEncoder(nn.Module):
  """Audio `[B, samples]`, a multiple of 320, to `[B, samples / 320, features]`."""

  width: int
  depth: int
  features: int
  dtype: jnp.dtype = jnp.float32
  remat: bool = False  # recompute each block's activations in the backward pass

  @nn.compact
  def __call__(self, audio):
    b, frames = audio.shape[0], audio.shape[1] // _HOP
    fine, quick = (_log_magnitude(audio, w, h).reshape(b, frames, -1)
                   for w, h in ((_FINE, _HOP), (_QUICK, _HOP // 2)))  # [B, T, 641], [B, T, 2 * 161]
    x = nn.Dense(self.width, dtype=self.dtype)(jnp.concatenate([fine, quick], axis=-1))
    x = nn.LayerNorm(dtype=self.dtype)(x)
    block = nn.remat(ConvNeXtBlock) if self.remat else ConvNeXtBlock
    for i in range(self.depth):
      x = block(1 / self.depth, self.dtype, name=f'ConvNeXtBlock_{i}')(x)
    return nn.Dense(self.features, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))


class LiteDecoder(nn.Module):
  """Latent `[B, T, d]` to audio `[B, T * 320]`."""

  width: int
  depth: int
  dtype: jnp.dtype = jnp.float32
  remat: bool = False  # as the encoder's

  @nn.compact
  def __call__(self, latent):
    x = nn.Conv(self.width, (7,), dtype=self.dtype)(latent)
    x = nn.LayerNorm(dtype=self.dtype)(x)
    block = nn.remat(ConvNeXtBlock) if self.remat else ConvNeXtBlock
    for i in range(self.depth):
      x = block(1 / self.depth, self.dtype, name=f'ConvNeXtBlock_{i}')(x)
    x = nn.LayerNorm(dtype=self.dtype)(x)
    bins = _FINE // 2 + 1
    log_magnitude, phase = (nn.Dense(bins, dtype=self.dtype)(x).astype(jnp.float32) for _ in range(2))
    magnitude = jnp.minimum(jnp.exp(log_magnitude), _MAX_MAGNITUDE)
    return istft(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase), _FINE, _HOP)


def _log_magnitude(audio, window, hop):
  """Log10 magnitude, about unit range for speech at the codec's level: `[B, frames, bins]`."""
  real, imag = stft(audio, window, hop)
  return 0.5 * jnp.log10(jnp.maximum(real ** 2 + imag ** 2, 1e-8))
