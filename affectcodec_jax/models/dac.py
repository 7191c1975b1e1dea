"""DAC-style convolutional networks: encoder, waveform to one vector a frame, and decoder, its mirror."""

from collections.abc import Sequence

from flax import linen as nn
import jax.numpy as jnp

from affectcodec_jax.models.layers import Conv, ConvTranspose, ResidualUnit, Snake

DILATIONS = (1, 3, 9)


class Encoder(nn.Module):
  """`[batch, samples]` to `[batch, samples / prod(strides), latent_dim]`.

  `samples` must be a multiple of the product of `strides` (the hop length). Each stride doubles the
  width, which starts at `dim`.
  """

  dim: int
  strides: Sequence[int]
  latent_dim: int
  dtype: jnp.dtype = jnp.float32
  remat: bool = False  # recompute each unit's activations in the backward pass

  @nn.compact
  def __call__(self, audio):
    width = self.dim
    # The codec's level is about -24 dBFS; the first gain brings it near unit variance.
    x = Conv(width, (7,), gain=10.0, dtype=self.dtype)(audio[..., None])  # [B, L, dim]
    unit = nn.remat(ResidualUnit) if self.remat else ResidualUnit
    for i, s in enumerate(self.strides):
      for j, dilation in enumerate(DILATIONS):
        # Named by hand: nn.remat would name it, and so its parameters, otherwise.
        x = unit(dilation, dtype=self.dtype, name=f'ResidualUnit_{i * len(DILATIONS) + j}')(x)
      width *= 2
      # Left padding as in the reference; the right one makes the length exactly L / s, odd s too.
      padding = [((s + 1) // 2, s // 2)]
      x = Conv(width, (2 * s,), strides=(s,), padding=padding, dtype=self.dtype)(Snake()(x))
    return Conv(self.latent_dim, (3,), dtype=self.dtype)(Snake()(x))  # [B, T, latent_dim]


class Decoder(nn.Module):
  """`[batch, frames, latent_dim]` to `[batch, frames * prod(strides)]`, in (-1, 1).

  Each stride halves the width, which starts at `dim`.
  """

  dim: int
  strides: Sequence[int]
  dtype: jnp.dtype = jnp.float32
  remat: bool = False  # as the encoder's

  @nn.compact
  def __call__(self, latent):
    width = self.dim
    x = Conv(width, (7,), dtype=self.dtype)(latent)  # [B, T, dim]
    unit = nn.remat(ResidualUnit) if self.remat else ResidualUnit
    for i, s in enumerate(self.strides):
      width //= 2
      x = ConvTranspose(width, s, dtype=self.dtype)(Snake()(x))
      for j, dilation in enumerate(DILATIONS):
        x = unit(dilation, dtype=self.dtype, name=f'ResidualUnit_{i * len(DILATIONS) + j}')(x)
    x = Conv(1, (7,), gain=0.1, dtype=self.dtype)(Snake()(x))  # [B, L, 1], quiet at the start
    return jnp.tanh(x[..., 0].astype(jnp.float32))
