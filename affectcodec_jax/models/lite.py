"""The lite backbone's encoder: ConvNeXt blocks on spectral frames and their autocorrelation.

Everything runs at the codec's 50 frames a second, so it needs a small part of the operations of the
DAC-style networks. The decoder is in `source_filter`. Layout `[batch, frames, channels]`.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.spectral import stft

_FINE = 4 * HOP_LENGTH  # 80 ms: resolves harmonics
_QUICK = HOP_LENGTH  # 20 ms, twice a frame: resolves plosives and glottal pulses of low voices
_LONGEST = 320  # samples: the period of 50 Hz
_LAGS = np.arange(24, _LONGEST)  # periods of 667 to 50 Hz


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
    b, frames = audio.shape[0], audio.shape[1] // HOP_LENGTH
    fine = _power(audio, _FINE, HOP_LENGTH)  # [B, T, 641]
    quick = _power(audio, _QUICK, HOP_LENGTH // 2)  # [B, 2 * T, 161]
    quick = cepstrum(quick).reshape(b, frames, -1)  # [B, 2 * T, 160] -> [B, T, 320]
    inputs = jnp.concatenate([cepstrum(fine), quick, 3 * autocorrelation(fine)], axis=-1)
    x = nn.Dense(self.width, dtype=self.dtype)(inputs)
    x = nn.LayerNorm(dtype=self.dtype)(x)
    block = nn.remat(ConvNeXtBlock) if self.remat else ConvNeXtBlock
    for i in range(self.depth):
      x = block(1 / self.depth, self.dtype, name=f'ConvNeXtBlock_{i}')(x)
    # A skip past the blocks, for what is linear in the inputs, which is most of a spectrum.
    x = jnp.concatenate([nn.LayerNorm(dtype=self.dtype)(x), inputs.astype(self.dtype)], axis=-1)
    return nn.Dense(self.features, dtype=self.dtype)(x)


def cepstrum(power):
  """Power spectra `[..., bins]` to cepstra `[..., min(320, bins - 1)]` of about unit variance in speech.

  Neighbouring bins rise and fall together: of log spectra a network learns the level at once, fine detail
  hundreds of times more slowly. Cepstral coefficients are nearly uncorrelated, and each is divided by its
  usual deviation (measured on speech at the codec's level; the last term keeps noise small).
  """
  bins = power.shape[-1]
  n = np.arange(min(_LONGEST, bins - 1))
  deviation = np.where(n == 0, 0.75, 0.2 * np.maximum(n, 1) ** -0.6 + 0.01)
  log_magnitude = 0.5 * jnp.log10(jnp.maximum(power, 1e-8))
  return _cosines(log_magnitude, n) * (0.5 / (bins - 1) / deviation).astype(np.float32)


def autocorrelation(power):
  """Power spectra `[..., 641]` to the autocorrelation at `_LAGS` over that at 0, `[..., 296]` in [-1, 1].

  A voice repeats after its period: pitch, which spectra only show between the lines, is then the place of
  a maximum.
  """
  return _cosines(power, _LAGS) / jnp.maximum(_cosines(power, np.zeros(1)), 1e-6)


def _cosines(spectrum, lags):
  """Inverse DFT, times its length, of real even spectra whose half is `[..., bins]`: `[..., lags]`."""
  bins = spectrum.shape[-1]
  k = np.arange(bins)[:, None]
  weight = np.where((k == 0) | (k == bins - 1), 1.0, 2.0)
  cosines = weight * np.cos(np.pi / (bins - 1) * (k * lags % (2 * bins - 2)))  # [bins, lags]
  return jnp.matmul(spectrum, cosines.astype(np.float32), precision=jax.lax.Precision.HIGHEST)


def _power(audio, window, hop):
  """Squared magnitudes of the STFT, `[B, frames, bins]`."""
  real, imag = stft(audio, window, hop)
  return real ** 2 + imag ** 2
