"""Whisper's encoder in Flax (arXiv 2212.04356, section 2.2), as far as one of its blocks.

Log-mels -> two convolutions, the second of which halves their 100 frames a second -> sinusoidal positions
-> pre-norm transformer blocks. Features are the residual stream after some of the blocks, without a last
normalisation. Parameters of published files come in through `python -m affectcodec_jax teacher convert`.

The published model reads 30 s; what is shorter is filled up with silence. `features` computes the frames of
a recording alone: before attention they equal the published ones, and attention leaves the silence out.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.spectral import frame, mel_matrix, spectrum

MELS, POSITIONS = 80, 1500  # positions: 30 s
_WINDOW, _HOP = 400, 160
_EPS = 1e-5
_MASKED = -1e30  # a finite one: where nothing is left to attend to, the softmax stays finite too


class Whisper(nn.Module):
  """The encoder's first blocks; tiny is 384 wide with 4 blocks in all, base 512 with 6.

  Attributes:
    dim: width, a multiple of 64: heads are 64 wide.
    layer: blocks.
    positions: frames that attend to each other at most; longer recordings go on in another window.
    dtype: of the computation. Log-mels, normalisation, softmax and parameters are float32 always.
    remat: recompute blocks in the backward pass instead of keeping their activations.
  """

  dim: int
  layer: int
  positions: int = POSITIONS
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  def setup(self):
    # The frames after the last come with the input, hence no padding there.
    self.conv1 = nn.Conv(self.dim, (3,), padding=[(1, 0)], dtype=self.dtype)
    self.conv2 = nn.Conv(self.dim, (3,), 2, padding=[(1, 0)], dtype=self.dtype)
    self.table = self.param('positions', lambda key: sinusoids(self.positions, self.dim))
    block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
    self.blocks = [block(self.dim, self.dtype) for _ in range(self.layer)]

  def features(self, audio, mask=None):
    """Frame features in step with the codec's frames.

    Recordings longer than `positions` frames (30 s) are cut into windows of so many frames for positions
    and attention; log-mels and convolutions run over the whole.

    Args:
      audio: `[batch, samples]` at 16 kHz, a multiple of 320, at the codec's level.
      mask: `[batch, samples / 320]` bool, True on the leading frames that count, or None. The others
        influence nothing.

    Returns:
      `[batch, samples / 320, dim]` float32.
    """
    return self._encode(log_mel(audio, mask), mask)

  def published_features(self, audio):
    """As the published model, silence up to 30 s: `[batch, samples]` to `[batch, positions, dim]`."""
    missing = self.positions * HOP_LENGTH - audio.shape[1]
    mel = log_mel(jnp.pad(audio, ((0, 0), (0, missing))))
    return self._encode(mel.at[:, -1].set(0), None)  # after 30 s convolutions see zeros

  def _encode(self, mel, mask):
    x = nn.gelu(self.conv1(mel), approximate=False)  # [B, 2T, dim]
    x = nn.gelu(self.conv2(x), approximate=False)  # [B, T, dim]
    b, t, _ = x.shape
    keep = jnp.ones((b, t), bool) if mask is None else mask
    size = min(t, self.positions)
    windows = -(-t // size)
    rest = windows * size - t
    x = jnp.pad(x, ((0, 0), (0, rest), (0, 0)))
    x = x.reshape(b * windows, size, self.dim)  # [B * windows, size, dim]
    keep = jnp.pad(keep, ((0, 0), (0, rest))).reshape(b * windows, size)  # [B * windows, size]
    x = x.astype(jnp.float32) + self.table[:size]
    for block in self.blocks:
      x = block(x, keep, windows > 1)
    return x.reshape(b, windows * size, self.dim)[:, :t]  # [B, T, dim]


class Block(nn.Module):
  """Pre-norm transformer block: x = x + attention(norm1(x)); x = x + mlp(norm2(x))."""

  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, keep, one_by_one=False):
    """One block.

    Args:
      x: `[B, N, dim]` float32.
      keep: `[B, N]` bool, the frames that are attended to.
      one_by_one: attention of one row after another, which bounds its memory.

    Returns:
      `[B, N, dim]` float32.
    """
    b, n, _ = x.shape
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    norm = lambda name: nn.LayerNorm(epsilon=_EPS, use_fast_variance=False, dtype=jnp.float32, name=name)
    qkv = dense(3 * self.dim, 'qkv')(norm('norm1')(x)).reshape(b, n, 3, -1, 64)  # [B, N, 3, heads, 64]
    if one_by_one:
      y = jax.lax.map(lambda row: _attention(*row), (qkv, keep))
    else:
      y = jax.vmap(_attention)(qkv, keep)
    x = x + dense(self.dim, 'proj')(y.reshape(b, n, self.dim))  # [B, N, dim]
    y = nn.gelu(dense(4 * self.dim, 'fc1')(norm('norm2')(x)), approximate=False)
    return x + dense(self.dim, 'fc2')(y)


def _attention(qkv, keep):
  """Attention `[N, heads, 64]` of queries, keys and values `[N, 3, heads, 64]` to frames `[N]`."""
  q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]  # [N, heads, 64]
  score = jnp.einsum('nhd,mhd->hnm', q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
  weight = jax.nn.softmax(jnp.where(keep, score, _MASKED), axis=-1)  # [heads, N, N]
  return jnp.einsum('hnm,mhd->nhd', weight.astype(v.dtype), v)


def log_mel(audio, mask=None):
  """What the published model reads: `[B, samples]` at 16 kHz to `[B, samples / 160 + 1, 80]` float32.

  log10 of the power in 80 mel bands, of windows of 25 ms every 10 ms, at least that of the loudest less 8,
  brought to about [-1, 1]. Before its start a recording goes on mirrored, after its end as silence. The
  last window is centred on the end.

  Args:
    audio: `[B, samples]`, a multiple of 320.
    mask: `[B, samples / 320]` bool, True on the leading frames that count, or None. The others are
      taken for silence; more than one frame beyond the last that counts, the output means nothing.
  """
  audio = audio.astype(jnp.float32)
  if mask is not None:
    audio = jnp.where(jnp.repeat(mask, HOP_LENGTH, axis=1), audio, 0)  # [B, samples]
  audio = jnp.pad(audio, ((0, 0), (_WINDOW // 2, 0)), mode='reflect')
  size = 3 * _HOP  # the multiple of the hop that holds a window
  audio = jnp.pad(audio, ((0, 0), (0, size - _WINDOW // 2)))
  real, imag = spectrum(frame(audio, size, _HOP)[..., :_WINDOW])  # [B, T, 201] each
  power = jnp.matmul(real ** 2 + imag ** 2, mel_matrix(_WINDOW, MELS), precision=jax.lax.Precision.HIGHEST)
  log = jnp.log10(jnp.maximum(power, 1e-10))  # [B, T, 80]
  inside = log
  if mask is not None:
    keep = jnp.pad(jnp.repeat(mask, 2, axis=1), ((0, 0), (1, 0)), constant_values=True)  # [B, T]
    inside = jnp.where(keep[..., None], log, -10)
  return (jnp.maximum(log, inside.max(axis=(1, 2), keepdims=True) - 8) + 4) / 4


def sinusoids(count, dim):
  """Positions 0 to `count` - 1: float32 `[count, dim]`, sines then cosines, periods up to 2 pi 10000."""
  rates = np.exp(-math.log(10000) / (dim // 2 - 1) * np.arange(dim // 2))
  angle = np.arange(count)[:, None] * rates
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
