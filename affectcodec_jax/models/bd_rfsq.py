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
"""

from collections.abc import Sequence
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.models import fsq
from affectcodec_jax.models.layers import weight_norm

STAGE_FADE = 0.7  # of a stage's start against the one before it


class Quantized(NamedTuple):
  """What a quantiser of K stages returns for `[batch, frames, dim]`.

  Attributes:
    stages: u_k, `[K, batch, frames, dim]`; the latent at m stages is the sum of the first m.
    indices: composite indices, `[batch, frames, K]` int32.
    commitment: `[K, batch]`, mean squared distance of the encoder's output to its code.
  """

  stages: jax.Array
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


def _init_block(rng, num_stages, dim, levels):
  """Parameters of all stages of one block, stacked on a leading axis of `num_stages`."""
  width = len(levels)
  v_in = _orthonormal_rows(rng, num_stages, dim, width)  # [K, d, f]
  v_out = v_in.transpose(0, 2, 1)  # [K, f, d]: the pseudo-inverse of pi_in
  gain = jnp.asarray([fsq.gaussian_gain(n) for n in levels])
  # Later stages start quieter: to an untrained decoder they are noise, and adding them would make
  # the higher rates the worse ones for as long as it takes to learn what they say.
  fade = STAGE_FADE ** jnp.arange(num_stages)
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


def _project_in(p, r):
  return r @ weight_norm(p['in_v'], p['in_g'], (0,))  # [B, T, f]


def _dequantize(p, codes):
  """u = pi_out(c / s + b): codes `[B, T, f]` to `[B, T, d]`. No bias in pi_in: b is its bias."""
  z = codes / _scale(p['log_scale']) + p['shift']
  return z @ weight_norm(p['out_v'], p['out_g'], (0,)) + p['out_b']


def _quantize(p, r, levels):
  """One stage of one block: residual `[B, T, d]` to u `[B, T, d]`, digits and commitment `[B]`."""
  z = _scale(p['log_scale']) * (_project_in(p, r) - p['shift'])  # [B, T, f]
  codes, digits = fsq.quantize(z, levels)
  commitment = jnp.mean((z - jax.lax.stop_gradient(codes)) ** 2, axis=(1, 2))
  return _dequantize(p, codes), digits, commitment


class BDRFSQ(nn.Module):
  """Residual FSQ over the two blocks of `dims` = (d_e, d_a), by `jax.lax.scan` over stages.

  Attributes:
    dims: widths of the emotion and the acoustic subspace.
    levels: their FSQ levels, e.g. ((2, 2, 2), (4, 4, 4, 4, 4, 4)).
    num_stages: K.
    projection: 'block' keeps the blocks apart; 'full' projects both together.
  """

  dims: Sequence[int]
  levels: Sequence[Sequence[int]]
  num_stages: int
  projection: str = 'block'

  def setup(self):
    self.params_ = [
        self.param(name, _init_block, self.num_stages, dim, levels)
        for name, dim, levels in zip(self._names(), *self._blocks())]

  def _names(self):
    return ('emotion', 'acoustic') if self.projection == 'block' else ('joint',)

  def _blocks(self):
    """Widths and levels of the blocks that are projected by themselves."""
    if self.projection == 'block':
      return tuple(self.dims), tuple(tuple(n) for n in self.levels)
    return (sum(self.dims),), (tuple(self.levels[0]) + tuple(self.levels[1]),)

  def _split(self, u):
    return jnp.split(u, np.cumsum(self._blocks()[0])[:-1], axis=-1)

  def __call__(self, u) -> Quantized:
    """Quantises `[batch, frames, d_e + d_a]`; float32 whatever comes in."""
    _, levels = self._blocks()
    all_levels = sum(levels, ())
    weight = [len(n) / len(all_levels) for n in levels]

    def stage(residuals, params):
      outs = [_quantize(p, r, n) for p, r, n in zip(params, residuals, levels)]
      index = fsq.digits_to_index(jnp.concatenate([o[1] for o in outs], axis=-1), all_levels)
      commitment = sum(w * o[2] for w, o in zip(weight, outs))
      residuals = [r - o[0] for r, o in zip(residuals, outs)]
      return residuals, (jnp.concatenate([o[0] for o in outs], axis=-1), index, commitment)

    residuals = self._split(u.astype(jnp.float32))
    _, (stages, indices, commitment) = jax.lax.scan(stage, residuals, self.params_)
    return Quantized(stages, jnp.moveaxis(indices, 0, -1), commitment)  # indices [B, T, K]

  def lookup(self, indices):
    """Any prefix of stages from its indices: `[batch, frames, m]` to `[m, batch, frames, d]`."""
    _, levels = self._blocks()
    all_levels = sum(levels, ())
    splits = np.cumsum([len(n) for n in levels])[:-1]
    params = jax.tree.map(lambda x: x[:indices.shape[-1]], self.params_)

    def stage(carry, inputs):
      p, index = inputs
      codes = fsq.digits_to_codes(fsq.index_to_digits(index, all_levels), all_levels)
      parts = jnp.split(codes, splits, axis=-1)
      return carry, jnp.concatenate([_dequantize(q, c) for q, c in zip(p, parts)], axis=-1)

    return jax.lax.scan(stage, None, (params, jnp.moveaxis(indices, -1, 0)))[1]

  def calibrate(self, u):
    """Parameters whose affine fits the first batch: every stage then starts with all codes in use.

    Stage by stage, b becomes the mean of z and s the gain that is best for a Gaussian of its
    spread. `u` is `[batch, frames, d]` from the untrained encoder, of about unit variance.
    """
    dims, levels = self._blocks()
    calibrated = []
    for params, r, n in zip(self.params_, self._split(u.astype(jnp.float32)), levels):
      gain = jnp.asarray([fsq.gaussian_gain(m) for m in n])
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
