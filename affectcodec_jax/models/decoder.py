"""DAC-style convolutional decoder: one vector a frame to waveform, the encoder's mirror."""

from collections.abc import Sequence

from flax import linen as nn
import jax.numpy as jnp

from affectcodec_jax.models.encoder import DILATIONS
from affectcodec_jax.models.layers import Conv, ConvTranspose, ResidualUnit, Snake


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
