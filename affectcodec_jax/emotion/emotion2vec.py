"""emotion2vec in Flax (arXiv 2312.15185), a data2vec 2.0 audio encoder (arXiv 2212.07525, section 3).

Waveform -> seven strided convolutions -> positions by convolution, ten extra tokens -> post-norm
transformer blocks with ALiBi. Only what inference needs: no masking, no decoder. Parameters of the
published PyTorch checkpoints come in through `python -m affectcodec_jax teacher convert`.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

CLASSES = ('angry', 'disgusted', 'fearful', 'happy', 'neutral', 'other', 'sad', 'surprised', 'unknown')
CONVS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))  # kernel, stride; 320 samples a frame
CONV_WIDTH = 512
POSITION_LAYERS, POSITION_KERNEL, POSITION_GROUPS = 5, 19, 16
EXTRA_TOKENS = 10
_HOP, _RECEPTIVE_FIELD = math.prod(stride for _, stride in CONVS), 400
_EPS = 1e-5


class Emotion2Vec(nn.Module):
  """The encoder; base is (768, 12), the plus-large model (1024, 16).

  Attributes:
    dim: width, a multiple of 16 and of `num_heads`.
    num_heads: of attention.
    prenet_blocks: transformer blocks of the audio prenet.
    main_blocks: the ones after it; in use they differ in nothing.
    num_classes: of the head; the base model has none.
    dtype: of the computation. Normalisation, softmax and parameters are float32 always.
    remat: recompute blocks in the backward pass instead of keeping their activations.
  """

  dim: int
  num_heads: int
  prenet_blocks: int = 4
  main_blocks: int = 8
  num_classes: int = 0
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  def setup(self):
    depth = self.prenet_blocks + self.main_blocks
    self.convs = [nn.Conv(CONV_WIDTH, (k,), s, padding='VALID', use_bias=False, dtype=self.dtype)
                  for k, s in CONVS]
    self.conv_norms = [_norm() for _ in CONVS]
    self.project_norm = _norm()
    self.project = nn.Dense(self.dim, dtype=self.dtype)
    self.positions = [nn.Conv(self.dim, (POSITION_KERNEL,), feature_group_count=POSITION_GROUPS,
                              dtype=self.dtype) for _ in range(POSITION_LAYERS)]
    self.position_norm = _norm(use_scale=False, use_bias=False)
    self.extra_tokens = self.param('extra_tokens', nn.initializers.normal(1.0), (EXTRA_TOKENS, self.dim))
    self.alibi_scale = self.param('alibi_scale', nn.initializers.ones, (depth, self.num_heads))
    self.context_norm = _norm()
    block = nn.remat(Block) if self.remat else Block
    self.blocks = [block(self.dim, self.num_heads, self.dtype) for _ in range(depth)]
    if self.num_classes:
      self.head = nn.Dense(self.num_classes)

  def features(self, audio, mask=None):
    """Frame features in step with the codec's frames.

    The published model gives one frame fewer than there are hops; 40 samples of padding on both sides
    make up for it and centre each frame on the codec's.

    Args:
      audio: `[batch, samples]` at 16 kHz, a multiple of 320; its level does not matter.
      mask: `[batch, samples / 320]` bool, True on the leading frames that count, or None. The others
        influence nothing.

    Returns:
      `[batch, samples / 320, dim]` float32.
    """
    edge = (_RECEPTIVE_FIELD - _HOP) // 2
    audio = normalise(audio, mask)
    return self._encode(jnp.pad(audio, ((0, 0), (edge, edge))), mask)

  def published_features(self, audio):
    """As the published model: `[batch, samples]` to `[batch, (samples - 400) // 320 + 1, dim]`."""
    return self._encode(normalise(audio), None)

  def utterance(self, features, mask=None):
    """Mean over the frames of `mask`: `[batch, frames, dim]` to `[batch, dim]`."""
    if mask is None:
      return features.mean(axis=1)
    count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return jnp.where(mask[..., None], features, 0).sum(axis=1) / count

  def logits(self, features, mask=None):
    """Logits of `CLASSES`, `[batch, 9]`, from `[batch, frames, dim]`, where the model has a head."""
    return self.head(self.utterance(features, mask))

  def __call__(self, audio, mask=None):
    """Features, and with a head (features, logits): arguments as for `features`."""
    features = self.features(audio, mask)
    return (features, self.logits(features, mask)) if self.num_classes else features

  def _encode(self, x, mask):
    x = x[..., None]  # [B, samples, 1]
    for conv, norm in zip(self.convs, self.conv_norms):
      x = nn.gelu(norm(conv(x)), approximate=False)  # [B, T, 512]
    x = self.project(self.project_norm(x))  # [B, T, dim]
    b, t, _ = x.shape
    keep = jnp.ones((b, t), bool) if mask is None else mask
    position = x
    for conv in self.positions:
      position = conv(jnp.where(keep[..., None], position, 0))
      position = nn.gelu(self.position_norm(position), approximate=False)  # [B, T, dim]
    extra = jnp.broadcast_to(self.extra_tokens, (b, EXTRA_TOKENS, self.dim))
    x = self.context_norm(jnp.concatenate([extra, x + position], axis=1))  # [B, 10 + T, dim]
    front = (EXTRA_TOKENS, 0)  # the extra tokens: at no distance from anything, and always there
    distance = jnp.abs(jnp.arange(t)[:, None] - jnp.arange(t)).astype(jnp.float32)
    distance = jnp.pad(distance, (front, front))  # [10 + T, 10 + T]
    keep = jnp.pad(keep, ((0, 0), front), constant_values=True)
    slopes = jnp.maximum(self.alibi_scale, 0) * np.float32(alibi_slopes(self.num_heads))  # [blocks, heads]
    for slope, block in zip(slopes, self.blocks):
      x = block(x, slope, distance, keep)
    return x[:, EXTRA_TOKENS:].astype(jnp.float32)


class Block(nn.Module):
  """Post-norm transformer block: x = norm1(x + attention(x)); x = norm2(x + mlp(x))."""

  dim: int
  num_heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, slope, distance, keep):
    """One block.

    Args:
      x: `[B, N, dim]` float32.
      slope: `[heads]`; attention over a distance d gets -slope * d (ALiBi, arXiv 2108.12409).
      distance: `[N, N]`.
      keep: `[B, N]` bool, the tokens that are attended to.

    Returns:
      `[B, N, dim]` float32.
    """
    b, n, _ = x.shape
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    qkv = dense(3 * self.dim, 'qkv')(x).reshape(b, n, 3, self.num_heads, -1)  # [B, N, 3, heads, dim/heads]
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, N, heads, dim/heads]
    score = jnp.einsum('bnhd,bmhd->bhnm', q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    score = score - slope[:, None, None] * distance  # [B, heads, N, N]
    weight = jax.nn.softmax(jnp.where(keep[:, None, None], score, -jnp.inf), axis=-1)
    y = jnp.einsum('bhnm,bmhd->bnhd', weight.astype(self.dtype), v).reshape(b, n, self.dim)  # [B, N, dim]
    x = _norm('norm1')(x + dense(self.dim, 'proj')(y))
    y = nn.gelu(dense(4 * self.dim, 'fc1')(x), approximate=False)
    return _norm('norm2')(x + dense(self.dim, 'fc2')(y))


def normalise(audio, mask=None):
  """Zero mean, unit variance of each clip `[B, samples]`, over the frames of `mask` only; 0 outside."""
  audio = audio.astype(jnp.float32)
  keep = jnp.ones(audio.shape, bool) if mask is None else jnp.repeat(mask, _HOP, axis=1)  # [B, samples]
  count = jnp.maximum(keep.sum(axis=1, keepdims=True), 1)
  mean = jnp.where(keep, audio, 0).sum(axis=1, keepdims=True) / count
  audio = jnp.where(keep, audio - mean, 0)
  return audio * jax.lax.rsqrt(jnp.square(audio).sum(axis=1, keepdims=True) / count + _EPS)


def alibi_slopes(heads):
  """Powers of 2^(-8/heads), `[heads]`.

  For a number that is no power of 2: those of the power below, and every other one of the power above.
  """
  power = 2 ** int(math.log2(heads))
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  return slopes if power == heads else slopes + alibi_slopes(2 * power)[::2][:heads - power]


def _norm(name=None, **kwargs):
  """LayerNorm in float32, its variance as E[(x - mean)^2]: E[x^2] - mean^2 loses digits."""
  return nn.LayerNorm(epsilon=_EPS, use_fast_variance=False, dtype=jnp.float32, name=name, **kwargs)
