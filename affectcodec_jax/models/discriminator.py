"""Multi-scale STFT discriminator (EnCodec, arXiv 2210.13438, section 3.4)."""

from collections.abc import Sequence

from flax import linen as nn
import jax.numpy as jnp

from affectcodec_jax.models.layers import Conv
from affectcodec_jax.spectral import stft


class ScaleDiscriminator(nn.Module):
  """One scale: complex STFT as two channels, 2-D convolutions, one logit a patch."""

  n_fft: int
  filters: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, audio):
    real, imag = stft(audio, self.n_fft, self.n_fft // 4, normalized=True)
    x = jnp.stack([real, imag], axis=-1)  # [B, frames, bins, 2]
    maps = []
    layers = [Conv(self.filters, (3, 9), dtype=self.dtype)]
    layers += [Conv(self.filters, (3, 9), strides=(1, 2), dilation=(d, 1), dtype=self.dtype)
               for d in (1, 2, 4)]
    layers += [Conv(self.filters, (3, 3), dtype=self.dtype)]
    for layer in layers:
      x = nn.leaky_relu(layer(x), 0.2)
      maps.append(x.astype(jnp.float32))
    return Conv(1, (3, 3), dtype=self.dtype)(x).astype(jnp.float32), maps


class Discriminator(nn.Module):
  """`[batch, samples]` to a list over scales of (logits, feature maps)."""

  n_ffts: Sequence[int]
  filters: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, audio):
    return [ScaleDiscriminator(n, self.filters, self.dtype)(audio) for n in self.n_ffts]
