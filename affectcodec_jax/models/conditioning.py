"""The emotion path around the codec: adapter, coarse conditioning (CEM), emotion decoder.

The teacher's features reach the codec in two ways. Coarse: pooled to one vector an utterance, which
scales and shifts the acoustic latent (FiLM). Fine: frame by frame, into the quantiser's emotion
block only.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from affectcodec_jax.models.layers import RESIDUAL_GAIN, Conv


class Adapter(nn.Module):
  """Light CNN from teacher features `[B, T, D]` to codec frames `[B, T, dim]`."""

  dim: int
  num_layers: int
  kernel: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, features):
    x = Conv(self.dim, (1,), dtype=self.dtype)(features)
    for _ in range(self.num_layers):
      x = x + Conv(self.dim, (self.kernel,), gain=RESIDUAL_GAIN, dtype=self.dtype)(nn.gelu(x))
    return x


class AttentionPool(nn.Module):
  """Softmax-weighted mean over frames: `[B, T, D]` and validity `[B, T]` to `[B, D]`."""

  @nn.compact
  def scores(self, x):
    """Logits of the weights, `[B, T]` float32."""
    x = x.astype(jnp.float32)
    return nn.Dense(1, use_bias=False)(jnp.tanh(nn.Dense(x.shape[-1] // 2)(x)))[..., 0]

  def __call__(self, x, mask):
    weights = jax.nn.softmax(jnp.where(mask, self.scores(x), -jnp.inf), axis=-1)
    return jnp.einsum('bt,btd->bd', weights, x.astype(jnp.float32))

  def part(self, x, mask):
    """What a piece of a recording adds: highest score `[B]`, sum of weights `[B]`, weighted sum `[B, D]`.

    Weights are relative to the highest score; `inference.pooling` puts pieces together.
    """
    scores = jnp.where(mask, self.scores(x), -jnp.inf)
    top = jnp.max(scores, axis=-1)
    weights = jnp.where(mask, jnp.exp(scores - top[:, None]), 0.0)
    return top, jnp.sum(weights, axis=-1), jnp.einsum('bt,btd->bd', weights, x.astype(jnp.float32))


class FiLM(nn.Module):
  """A_f = gamma * A + beta, both linear in the utterance embedding; starts as the identity."""

  @nn.compact
  def __call__(self, acoustic, embedding):
    width = acoustic.shape[-1]
    small = nn.initializers.normal(1e-3)
    gamma = nn.Dense(width, kernel_init=small, bias_init=nn.initializers.ones)(embedding)
    beta = nn.Dense(width, kernel_init=small)(embedding)
    return gamma[:, None] * acoustic + beta[:, None]  # [B, T, width]


class EmotionDecoder(nn.Module):
  """Quantised emotion latent `[B, T, d_e]` back to teacher features `[B, T, feature_dim]`."""

  feature_dim: int
  dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, latent):
    x = nn.gelu(Conv(self.dim, (3,), dtype=self.dtype)(latent))
    x = x + nn.gelu(Conv(self.dim, (3,), dtype=self.dtype)(x))
    return Conv(self.feature_dim, (1,), dtype=self.dtype)(x).astype(jnp.float32)
