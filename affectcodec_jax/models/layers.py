"""Weight-normalised convolutions and the Snake activation: the bricks of the DAC-style networks.

Layout is NWC (`[batch, time, channels]`) for 1-D and NHWC for 2-D. Parameters are float32; `dtype`
is the dtype of the computation. Padding is explicit everywhere, so lengths are known by arithmetic.
"""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.common.platforms import by_platform

Dtype = jnp.dtype
RESIDUAL_GAIN = 0.3  # of the last convolution of a residual branch: a dozen of them add up to about 2


def weight_norm(v, g, axes):
  """g * v / ||v||, the norm taken over `axes` (Salimans & Kingma, arXiv 1602.07868)."""
  return v * (g / jnp.sqrt(jnp.sum(v * v, axis=axes, keepdims=True) + 1e-12))


class Conv(nn.Module):
  """Weight-normalised convolution, 1-D or 2-D by the length of `kernel`.

  `padding` holds one `(before, after)` pair a dimension; None keeps the length at stride 1.
  Every output channel's weight has the norm `gain` at the start, 1 preserving variance. (Smaller
  gains, such as a kaiming-uniform weight's 1/sqrt(3), leave activations of some hundredths deep in
  the network, and the biases then swamp them within tens of steps.)
  """

  features: int
  kernel: Sequence[int]
  strides: Sequence[int] | None = None
  dilation: Sequence[int] | None = None
  padding: Sequence[tuple[int, int]] | None = None
  gain: float = 1.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    n = len(self.kernel)
    strides = self.strides or (1,) * n
    dilation = self.dilation or (1,) * n
    padding = self.padding or [((k - 1) * d // 2, (k - 1) * d - (k - 1) * d // 2)
                               for k, d in zip(self.kernel, dilation)]
    shape = (*self.kernel, x.shape[-1], self.features)
    v = self.param('v', nn.initializers.normal(1.0), shape)
    g = self.param('g', nn.initializers.constant(self.gain), (self.features,))
    b = self.param('b', nn.initializers.zeros, (self.features,))
    x, w = x.astype(self.dtype), weight_norm(v, g, tuple(range(n + 1))).astype(self.dtype)
    spatial = 'W' if n == 1 else 'HW'

    def conv(x, w):
      return jax.lax.conv_general_dilated(
          x, w, strides, padding, rhs_dilation=dilation,
          dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'))

    if n == 2 and strides[0] == dilation[1] == 1 and self.padding is None:
      y = by_platform(x, w, default=conv, cpu=lambda x, w: folded_conv(x, w, strides[1], dilation[0]))
    else:
      y = conv(x, w)
    return y + b.astype(self.dtype)


def whiten(convs, outputs):
  """Rescales convolutions so that what they give has zero mean and unit variance a channel.

  Args:
    convs: parameters of `Conv`s.
    outputs: what they give now, side by side, `[batch, time, channels of all]`.

  Returns:
    A list of the new parameters, and the new outputs.
  """
  mean, std = outputs.mean(axis=(0, 1)), outputs.std(axis=(0, 1)) + 1e-6
  whitened, start = [], 0
  for p in convs:
    part = slice(start, start + len(p['b']))
    whitened.append(p | {'g': p['g'] / std[part], 'b': (p['b'] - mean[part]) / std[part]})
    start = part.stop
  return whitened, (outputs - mean) / std


_FOLD = 8  # neighbours that become channels


def folded_conv(x, w, stride, dilation):
  """2-D convolution of few channels as one of many: `[B, H, W, C]` by `[h, w, C, F]` to `[B, H, W', F]`.

  Zero-padded to keep H, and W but for its `stride`; `dilation` is along H. Eight neighbours along W become
  channels, of which three neighbouring blocks make eight / stride outputs each: two in three products
  are with zeros, and on a CPU it is still 3 to 10 times faster, gradients most of all.
  """
  kernel, taps, c, f = w.shape
  outputs = _FOLD // stride  # a block
  # Tap i of output j falls on place 8 + stride * j - before + i of three blocks.
  place = (np.arange(3 * _FOLD)[None, :, None] == _FOLD + stride * np.arange(outputs)[None, None, :]
           - (taps - 1) // 2 + np.arange(taps)[:, None, None])  # [taps, 24, outputs]
  folded = jnp.einsum('hicf,ipj->hpcjf', w, place.astype(w.dtype)).reshape(
      kernel, 3, _FOLD * c, outputs * f)
  b, height, width, _ = x.shape
  blocks = -(-width // _FOLD)
  x = jnp.pad(x, ((0, 0), (0, 0), (0, blocks * _FOLD - width), (0, 0)))
  x = x.reshape(b, height, blocks, _FOLD * c)  # [B, H, W / 8, 8 * C]
  reach = (kernel - 1) * dilation
  y = jax.lax.conv_general_dilated(
      x, folded, (1, 1), [(reach // 2, reach - reach // 2), (1, 1)], rhs_dilation=(dilation, 1),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))  # [B, H, W / 8, 8 / stride * F]
  return y.reshape(b, height, blocks * outputs, f)[:, :, :-(-width // stride)]


class ConvTranspose(nn.Module):
  """Weight-normalised transposed 1-D convolution, kernel 2s, stride s: `[B, T, C]` to `[B, T*s, F]`.

  One matmul to 2s outputs a frame and an overlap-add of the two halves: the same operator as a
  transposed convolution, and its gradient is a matmul too (on CPU 10 times faster or more). The
  first ceil(s/2) and the last floor(s/2) samples are cropped, so every length is a multiple of s.
  As in the DAC reference the norm is taken over the output and kernel axes, one gain an *input*
  channel.
  """

  features: int
  stride: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    b, t, c = x.shape
    s, f = self.stride, self.features
    v = self.param('v', nn.initializers.normal(1.0), (c, 2 * s, f))
    # Each output sample sums 2 taps of c channels: this gain preserves variance.
    g = self.param('g', nn.initializers.constant(math.sqrt(s * f / c)), (c,))
    bias = self.param('b', nn.initializers.zeros, (f,))
    w = weight_norm(v, g[:, None, None], (1, 2))
    y = x.astype(self.dtype) @ w.astype(self.dtype).reshape(c, 2 * s * f)  # [B, T, 2*s*F]
    y = y.reshape(b, t, 2, s * f)  # [B, T, halves, s*F]
    y = (jnp.pad(y[:, :, 0], ((0, 0), (0, 1), (0, 0)))
         + jnp.pad(y[:, :, 1], ((0, 0), (1, 0), (0, 0))))  # [B, T+1, s*F]
    y = y.reshape(b, (t + 1) * s, f)[:, (s + 1) // 2:][:, :t * s]  # [B, T*s, F]
    return y + bias.astype(self.dtype)


_PI_HI, _PI_LO = 3.140625, 9.6765358979e-4  # pi in two parts, for an accurate range reduction


def _sin_cos_reduced(y):
  """(sin r, cos r) with r = y - pi * round(y / pi): equal to (sin y, cos y) up to a common sign."""
  n = jnp.round(y * (1 / math.pi))
  r = (y - n * _PI_HI) - n * _PI_LO
  q = r * r  # |r| <= pi/2: the first terms left out are below 6e-8 and 7e-9
  sin = r * (1 + q * (-1 / 6 + q * (1 / 120 + q * (-1 / 5040 + q * (1 / 362880 - q / 39916800)))))
  cos = 1 + q * (-1 / 2 + q * (1 / 24 + q * (-1 / 720 + q * (
      1 / 40320 + q * (-1 / 3628800 + q / 479001600)))))
  return sin, cos


def sin_squared_polynomial(y):
  """sin(y)^2 and its derivative. Squared, the common sign of the reduced sine is gone."""
  sin, cos = _sin_cos_reduced(y.astype(jnp.float32))  # of a bfloat16 y the reduction would leave little
  return (sin * sin).astype(y.dtype), (2 * sin * cos).astype(y.dtype)


def _sin_squared_plain(y):
  sin = jnp.sin(y)
  return sin * sin, 2 * sin * jnp.cos(y)


def _sin_squared(y):
  # XLA's sine on CPU takes ten times as long as the polynomial; elsewhere the plain form is best.
  polynomial = sin_squared_polynomial
  return by_platform(y, default=_sin_squared_plain, cpu=polynomial, portable=polynomial)


@jax.custom_jvp
def sin_squared(y):
  """sin(y)^2, of the shape and dtype of `y`."""
  return _sin_squared(y)[0]


@sin_squared.defjvp
def _sin_squared_jvp(primals, tangents):
  value, slope = _sin_squared(primals[0])
  return value, slope * tangents[0]


class Snake(nn.Module):
  """x + sin(a x)^2 / a with one `a` a channel, starting at 1 (arXiv 2006.08195, eq. 3)."""

  @nn.compact
  def __call__(self, x):
    alpha = self.param('alpha', nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)
    return x + sin_squared(alpha * x) / (alpha + jnp.asarray(1e-9, x.dtype))


class ResidualUnit(nn.Module):
  """Snake, dilated conv k7, Snake, conv k1, added to the input: `[B, T, C]` to `[B, T, C]`."""

  dilation: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    features = x.shape[-1]
    y = Conv(features, (7,), dilation=(self.dilation,), dtype=self.dtype)(Snake()(x))
    y = Conv(features, (1,), gain=RESIDUAL_GAIN, dtype=self.dtype)(Snake()(y))
    return x + y
