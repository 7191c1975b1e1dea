"""Plain residual vector quantisation, the paper's first comparison.

The DAC form (arXiv 2306.06546, section 3.2): each stage projects the residual to a few dimensions
and takes the nearest codeword there by cosine. Same inputs, outputs and rate as BD-RFSQ, and no
emotion block: the stages see the concatenated latent whole.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from affectcodec_jax.models.bd_rfsq import Quantized, matmul


class RVQ(nn.Module):
  """`num_stages` codebooks of `codebook_size` words of `codebook_dim` over `[batch, frames, dim]`."""

  dim: int
  num_stages: int
  codebook_size: int
  codebook_dim: int

  def setup(self):
    k, d, f = self.num_stages, self.dim, self.codebook_dim
    uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform', batch_axis=(0,))  # as DAC's
    self.in_w = self.param('in_w', uniform, (k, d, f))
    self.out_w = self.param('out_w', uniform, (k, f, d))
    self.out_b = self.param('out_b', nn.initializers.zeros, (k, d))
    self.codebook = self.param('codebook', nn.initializers.normal(1.0), (k, self.codebook_size, f))

  def __call__(self, u, rounding=1.0) -> Quantized:
    """Quantises `[batch, frames, dim]` in float32; `commitment` includes the codebook loss.

    `rounding` blends words and what they stand for, as in `fsq.quantize`.
    """

    def stage(residual, params):
      in_w, out_w, out_b, codebook = params
      z = matmul('btd,df->btf', residual, in_w)
      index = _nearest(z, codebook)
      word = codebook[index]
      commitment = jnp.mean((z - jax.lax.stop_gradient(word)) ** 2, axis=(1, 2))
      # The codebook follows the encoder four times as strongly as the encoder the codebook.
      update = jnp.mean((jax.lax.stop_gradient(z) - word) ** 2, axis=(1, 2))
      value = z + jax.lax.stop_gradient(rounding * (word - z))
      out = matmul('btf,fd->btd', value, out_w) + out_b
      return residual - out, (value, index, commitment + 4 * update)

    params = (self.in_w, self.out_w, self.out_b, self.codebook)
    _, (values, indices, commitment) = jax.lax.scan(stage, u.astype(jnp.float32), params)
    return Quantized(values, jnp.moveaxis(indices, 0, -1), commitment)

  def latent(self, values):
    """Sum of the first m stages, of their values `[m, batch, frames, codebook_dim]`."""
    m = len(values)
    return matmul('kbtf,kfd->btd', values, self.out_w[:m]) + self.out_b[:m].sum(0)

  def lookup(self, indices):
    """Indices `[batch, frames, m]` to values `[m, batch, frames, codebook_dim]`: the words."""
    m = indices.shape[-1]
    return jax.vmap(lambda c, i: c[i])(self.codebook[:m], jnp.moveaxis(indices, -1, 0))

  def calibrate(self, u):
    """Parameters whose codebooks are the k-means of a first batch's residuals, as EnCodec starts its own.

    Args:
      u: `[batch, frames, dim]`, float32.
    """

    def stage(residual, params):
      in_w, out_w, out_b = params
      z = matmul('btd,df->btf', residual, in_w)
      codebook = _k_means(z.reshape(-1, self.codebook_dim), self.codebook_size)  # [B, T, f] -> [B * T, f]
      word = codebook[_nearest(z, codebook)]
      return residual - matmul('btf,fd->btd', word, out_w) - out_b, codebook

    _, codebooks = jax.lax.scan(stage, u.astype(jnp.float32), (self.in_w, self.out_w, self.out_b))
    return dict(self.variables['params']) | {'codebook': codebooks}


def _k_means(z, size):
  """`size` words for the points `[N, f]`: each begins at one, and ten times becomes the mean of its own.

  Where there are fewer points than words, several words begin near the same one.
  """
  rng = jax.random.key(0)
  at = jnp.arange(size) % len(z)
  start = jax.random.permutation(rng, z)[at]
  words = start + 0.01 * z.std(axis=0) * jax.random.normal(jax.random.fold_in(rng, 1), start.shape)

  def iterate(words, _):
    index = _nearest(z[None], words)[0]  # [N]
    count = jnp.zeros(size).at[index].add(1.0)[:, None]
    total = jnp.zeros_like(words).at[index].add(z)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), words), None

  return jax.lax.scan(iterate, words, length=10)[0]


def _nearest(z, codebook):
  """Index of the codeword with the largest cosine: `[B, T, f]` x `[N, f]` to `[B, T]` int32."""
  unit = codebook / (jnp.linalg.norm(codebook, axis=-1, keepdims=True) + 1e-12)
  return jnp.argmax(matmul('btf,nf->btn', jax.lax.stop_gradient(z), unit), axis=-1).astype(jnp.int32)
