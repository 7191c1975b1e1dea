"""Block-Diagonal Residual FSQ (AffectCodec, arXiv 2605.23373, section on BD-RFSQ).

With r_0 = U = [U_e, U_a], stage k computes

  z_k = pi_in(k) r_{k-1}           block-diagonal, weight-normalised, R^d -> R^f
  z~  = s * (z_k - b)              s = softplus(l) + 0.1, learned, a dimension
  c_k = FSQ(z~)                    one composite index of prod(levels) values
  u_k = pi_out(k) (c_k / s + b)    block-diagonal, R^f -> R^d
  r_k = r_{k-1} - u_k

and the latent after m stages is u_1 + ... + u_m. The blocks never meet: the emotion residual is a
function of U_e alone and the acoustic one of U_a alone, in value and in gradient. With
`projection='full'` there is one block as wide as both: the factorised RFSQ of the paper's ablation.

pi_in and pi_out being linear, no residual of R^d is ever formed: the scan carries pi_in(j) r of every
stage j, of few dimensions, and takes pi_in(j) u_k off it. That is the same function with a hundredth of
the memory traffic; `_quantize` is one stage as written above, and a test compares them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.models import fsq
from affectcodec_jax.models.layers import weight_norm


class Quantized(NamedTuple):
  """What a quantiser of K stages returns for `[batch, frames, dim]`.

  Attributes:
    values: c_k / s + b of each stage, `[K, batch, frames, f]`: what pi_out reads. The latent after m
      stages is the quantiser's `latent(values[:m])`.
    indices: composite indices, `[batch, frames, K]` int32.
    commitment: `[K, batch]`, mean squared distance of the encoder's output to its code.
  """

  values: jax.Array
  indices: jax.Array
  commitment: jax.Array


def _orthonormal_rows(rng, num_stages, dim, width):
  """`[num_stages, dim, width]`: columns orthonormal, across stages too as far as `dim` allows.

  Each stage then starts by reading directions that no earlier one has touched, instead of the
  rounding error of the directions already read.
  """
  per_set = max(dim // width, 1)  # stages that fit in one orthonormal basis
  bases = []
  for i in range(-(-num_stages // per_set)):
    basis = jax.random.orthogonal(jax.random.fold_in(rng, i), dim)[:, :per_set * width]
    bases.append(basis.reshape(dim, per_set, -1).transpose(1, 0, 2))  # [stages, dim, width]
  return jnp.concatenate(bases)[:num_stages]


def _init_block(rng, num_stages, dim, levels, start, fade):
  """Parameters of all stages of one block, stacked on a leading axis of `num_stages`."""
  width = len(levels)
  v_in = _orthonormal_rows(rng, 1 if start == 'refine' else num_stages, dim, width)
  v_in = jnp.broadcast_to(v_in, (num_stages, dim, width))  # [K, d, f]
  gain, scale = jnp.asarray([fsq.gaussian_gain(n) for n in levels]).T
  # The pseudo-inverse of pi_in, and what makes the best estimate of a code over s.
  v_out = v_in.transpose(0, 2, 1) * (gain * scale)[:, None]  # [K, f, d]
  fade = fade ** jnp.arange(num_stages)
  return {
      'in_v': v_in,
      'in_g': jnp.ones((num_stages, width)),
      'log_scale': jnp.tile(_inverse_scale(gain), (num_stages, 1)),
      'shift': jnp.zeros((num_stages, width)),
      'out_v': v_out,
      'out_g': jnp.sqrt(jnp.sum(v_out ** 2, axis=1)) * fade[:, None],  # [K, d]
      'out_b': jnp.zeros((num_stages, dim)),
  }


def _scale(log_scale):
  return jax.nn.softplus(log_scale) + 0.1


def _inverse_scale(scale):
  x = jnp.maximum(scale - 0.1, 1e-3)
  return x + jnp.log(-jnp.expm1(-x))  # inverse of softplus, without overflow


def matmul(subscripts, a, b):
  """`einsum` in float32, on accelerators too, whose default would round the factors to bfloat16."""
  return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)


_weights = jax.vmap(lambda v, g: weight_norm(v, g, (0,)))  # of all stages: [K, in, out], [K, out]


def _project_in(p, r):
  return matmul('btd,df->btf', r, weight_norm(p['in_v'], p['in_g'], (0,)))


def _project_out(p, z):
  return matmul('btf,fd->btd', z, weight_norm(p['out_v'], p['out_g'], (0,))) + p['out_b']


def _round(p, z, levels, rounding=1.0):
  """z `[B, T, f]` of one stage to c / s + b `[B, T, f]`, digits and commitment `[B]`."""
  scale = _scale(p['log_scale'])
  codes, digits = fsq.quantize(scale * (z - p['shift']), levels, rounding)
  scaled = jax.lax.stop_gradient(scale) * (z - p['shift'])
  grid = jax.lax.stop_gradient(fsq.digits_to_codes(digits, levels))
  # No gradient along the signal itself, nor into its scale: the distance is least for a small signal, and
  # scale, projection and encoder would all learn to make one, which leaves the outer codes unused. A
  # signal of more than twice the grid's extent, where tanh passes no gradient, is drawn back.
  std = jnp.sqrt(jnp.mean(scaled ** 2, axis=1, keepdims=True) + 1e-4)  # [B, 1, f]
  scaled = scaled * jnp.where(std > 2, 1.0, jax.lax.stop_gradient(std) / std)
  commitment = jnp.mean((scaled - grid) ** 2, axis=(1, 2))
  return _restore(p, codes), digits, commitment


def _block_diagonal(blocks):
  """`[K, f_i, J, f_i]` of each block to `[K, f, J, f]`, f = sum of f_i; exact zeros between blocks."""
  ends = np.cumsum([x.shape[1] for x in blocks])
  pads = [(end - x.shape[1], ends[-1] - end) for x, end in zip(blocks, ends)]
  return sum(jnp.pad(x, ((0, 0), pad, (0, 0), pad)) for x, pad in zip(blocks, pads))


def _restore(p, codes):
  """c / s + b. No bias in pi_in: b is its bias."""
  return codes / _scale(p['log_scale']) + p['shift']


def _quantize(p, r, levels):
  """One stage of one block: residual `[B, T, d]` to u `[B, T, d]`, digits and commitment `[B]`."""
  z, digits, commitment = _round(p, _project_in(p, r), levels)
  return _project_out(p, z), digits, commitment


class BDRFSQ(nn.Module):
  """Residual FSQ over the two blocks of `dims` = (d_e, d_a), by `jax.lax.scan` over stages.

  Attributes:
    dims: widths of the emotion and the acoustic subspace.
    levels: their FSQ levels, e.g. ((2, 2, 2), (4, 4, 4, 4, 4, 4)).
    num_stages: K.
    projection: 'block' keeps the blocks apart; 'full' projects both together.
    start: 'spread' begins with every stage reading directions that no earlier one reads, 'refine' with all
      of them reading the same, so what the earlier ones left over.
    fade: loudness of a stage at the start, over that of the one before it. To an untrained decoder later
      stages are noise; below 1 they have to earn their place, and may not.
  """

  dims: Sequence[int]
  levels: Sequence[Sequence[int]]
  num_stages: int
  projection: str = 'block'
  start: str = 'spread'
  fade: float = 1.0

  def setup(self):
    self.params_ = [
        self.param(name, _init_block, self.num_stages, dim, levels, self.start, self.fade)
        for name, dim, levels in zip(self._names(), *self._blocks())]

  def _names(self):
    return ('emotion', 'acoustic') if self.projection == 'block' else ('joint',)

  def _blocks(self):
    """Widths and levels of the blocks that are projected by themselves."""
    if self.projection == 'block':
      return tuple(self.dims), tuple(tuple(n) for n in self.levels)
    return (sum(self.dims),), (tuple(self.levels[0]) + tuple(self.levels[1]),)

  def _all_levels(self):
    return sum(self._blocks()[1], ())

  def _affine(self):
    """l and b of all stages, the blocks side by side: `[K, f]` each."""
    return {name: jnp.concatenate([p[name] for p in self.params_], axis=-1)
            for name in ('log_scale', 'shift')}

  def _split(self, u):
    return jnp.split(u, np.cumsum(self._blocks()[0])[:-1], axis=-1)

  def __call__(self, u, rounding=1.0) -> Quantized:
    """Quantises `[batch, frames, d_e + d_a]` in float32; `rounding` as in `fsq.quantize`."""
    levels = self._all_levels()
    b, t, f, k = *u.shape[:2], len(levels), self.num_stages
    w_in = [_weights(p['in_v'], p['in_g']) for p in self.params_]  # [K, d, f] a block
    w_out = [_weights(p['out_v'], p['out_g']) for p in self.params_]  # [K, f, d]
    reads = jnp.concatenate([matmul('btd,kdf->btkf', r, i) for r, i in zip(
        self._split(u.astype(jnp.float32)), w_in)], axis=-1).reshape(b, t, k * f)  # [B, T, K*f]
    # What a unit in each of a stage's values, and its bias, take off the reads: 0 from block to block.
    taken = _block_diagonal([matmul('kfd,jdg->kfjg', o, i) for i, o in zip(w_in, w_out)])
    taken = taken.reshape(k, f, k * f)
    bias = jnp.concatenate([matmul('kd,jdg->kjg', p['out_b'], i)
                            for p, i in zip(self.params_, w_in)], axis=-1).reshape(k, k * f)

    def stage(reads, inputs):
      at, affine, taken, bias = inputs
      z = jax.lax.dynamic_slice_in_dim(reads, at * f, f, axis=-1)  # [B, T, f]
      values, digits, commitment = _round(affine, z, levels, rounding)
      reads = reads - matmul('btf,fg->btg', values, taken) - bias
      return reads, (values, fsq.digits_to_index(digits, levels), commitment)

    _, (values, indices, commitment) = jax.lax.scan(
        stage, reads, (jnp.arange(k), self._affine(), taken, bias))
    return Quantized(values, jnp.moveaxis(indices, 0, -1), commitment)  # indices [B, T, K]

  def latent(self, values):
    """u_1 + ... + u_m of the first m stages' values `[m, batch, frames, f]`: `[batch, frames, d]`."""
    m, splits = len(values), np.cumsum([len(n) for n in self._blocks()[1]])[:-1]
    return jnp.concatenate([
        matmul('kbtf,kfd->btd', v, _weights(p['out_v'][:m], p['out_g'][:m])) + p['out_b'][:m].sum(0)
        for p, v in zip(self.params_, jnp.split(values, splits, axis=-1))], axis=-1)

  def lookup(self, indices):
    """Values `[m, batch, frames, f]` of any prefix of stages from its indices `[batch, frames, m]`."""
    levels, m = self._all_levels(), indices.shape[-1]
    codes = fsq.digits_to_codes(fsq.index_to_digits(indices, levels), levels)  # [B, T, m, f]
    affine = {name: x[:m, None, None] for name, x in self._affine().items()}
    return _restore(affine, jnp.moveaxis(codes, 2, 0))

  def calibrate(self, u):
    """Parameters whose affine fits the first batch: every stage then starts with all codes in use.

    Stage by stage, b becomes the mean of z and s the gain that is best for a Gaussian of its
    spread. `u` is `[batch, frames, d]` from the untrained encoder, of about unit variance.
    """
    levels = self._blocks()[1]
    calibrated = []
    for params, r, n in zip(self.params_, self._split(u.astype(jnp.float32)), levels):
      gain = jnp.asarray([fsq.gaussian_gain(m)[0] for m in n])
      stages = []
      for k in range(self.num_stages):
        p = {name: x[k] for name, x in params.items()}
        z = _project_in(p, r)
        p['shift'] = z.mean(axis=(0, 1))
        p['log_scale'] = _inverse_scale(gain / jnp.maximum(z.std(axis=(0, 1)), 0.05))
        r = r - _quantize(p, r, n)[0]
        stages.append(p)
      calibrated.append(jax.tree.map(lambda *x: jnp.stack(x), *stages))
    return dict(zip(self._names(), calibrated))
