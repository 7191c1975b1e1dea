"""FSQ and BD-RFSQ against `vector_quantize_pytorch`; requirements-parity.txt tells how to install.

Their `preserve_symmetry=True` is the symmetric form: tanh, then the nearest of 2i/(L-1) - 1. It is
ours but for exact ties (z = 0 at an even L), which they round up and we to the even digit. Both
number the codes in mixed radix, the first dimension least significant.

The references run in float64. Indices must be equal without exception: the seeds are fixed, and a
value that float32 puts on the other side of a boundary is one in 10^5 or rarer.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectcodec_jax.models import fsq
from affectcodec_jax.models.bd_rfsq import BDRFSQ

HOW = 'is not installed, see requirements-parity.txt'
torch = pytest.importorskip('torch', reason=f'torch {HOW}')
vq = pytest.importorskip('vector_quantize_pytorch', reason=f'vector_quantize_pytorch {HOW}')

EMOTION, ACOUSTIC = (2, 2, 2), (4, 4, 4, 4, 4, 4)
LEVELS = EMOTION + ACOUSTIC

def test_codebook_and_index_order_equal():
  """All 32768 codes in order, and back to their indices; 1e-6 is a few roundings near 1."""
  reference = vq.FSQ(list(LEVELS), preserve_symmetry=True)
  index = jnp.arange(math.prod(LEVELS))
  digits = fsq.index_to_digits(index, LEVELS)
  codes = fsq.digits_to_codes(digits, LEVELS)
  np.testing.assert_allclose(codes, reference.implicit_codebook, atol=1e-6)
  np.testing.assert_array_equal(digits, reference.indices_to_level_indices(torch.arange(2 ** 15)))
  np.testing.assert_array_equal(reference.codes_to_indices(torch.tensor(np.asarray(codes))), index)


@pytest.mark.parametrize('levels', [LEVELS, (3, 5, 8, 7), (2, 3, 16)])
def test_fsq_equals(levels):
  """Codes, indices and the straight-through gradient, in the range and far outside of it."""
  reference = vq.FSQ(list(levels), preserve_symmetry=True)
  rng = np.random.default_rng(3)
  z = (rng.normal(size=(4, 500, len(levels))) * rng.choice([0.3, 1, 5], (4, 500, 1)))
  z = z.astype(np.float32)
  weight = rng.normal(size=z.shape).astype(np.float32)
  x = torch.tensor(z).double().requires_grad_()
  codes, index = reference(x)
  (codes * torch.tensor(weight)).sum().backward()

  ours, digits = fsq.quantize(jnp.asarray(z), levels)
  np.testing.assert_array_equal(fsq.digits_to_index(digits, levels), index)
  np.testing.assert_allclose(ours, codes.detach(), atol=1e-6)
  grad = jax.grad(lambda z: jnp.sum(fsq.quantize(z, levels)[0] * weight))(jnp.asarray(z))
  np.testing.assert_allclose(grad, x.grad, atol=2e-6)


def quantiser_params(dims, num_stages, scale, projection, rng=None):
  """BDRFSQ parameters with scales `[K, f]`: identity projections, or random ones and shifts."""
  names = ('emotion', 'acoustic') if projection == 'block' else ('joint',)
  widths = (len(EMOTION), len(ACOUSTIC)) if projection == 'block' else (len(LEVELS),)
  dims = dims if projection == 'block' else (sum(dims),)

  def draw(*shape):
    return rng.normal(size=shape) if rng else np.zeros(shape)

  def matrix(*shape):
    return draw(*shape) if rng else np.broadcast_to(np.eye(*shape[1:]), shape)

  params, k = {}, num_stages
  for name, d, f, s in zip(names, dims, widths, np.split(scale, np.cumsum(widths)[:-1], axis=1)):
    params[name] = {
        'in_v': matrix(k, d, f), 'in_g': 1 + 0.1 * draw(k, f),
        'log_scale': np.log(np.expm1(s - 0.1)), 'shift': 0.3 * draw(k, f),
        'out_v': matrix(k, f, d), 'out_g': 1 + 0.1 * draw(k, d), 'out_b': 0.1 * draw(k, d)}
    params[name] = {key: x.astype(np.float32) for key, x in params[name].items()}
  return params


@pytest.mark.parametrize('projection', ['block', 'full'])
def test_bd_rfsq_equals_residual_fsq(projection):
  """Identity projections and a scale of L^k in stage k make BD-RFSQ their ResidualFSQ.

  Their layers then bound by tanh (`bound_hard_clamp=False`) and have no projection. Indices must be
  equal, codes to 1e-5: float32 sums of 4 stages.
  """
  num_stages, dims = 4, (len(EMOTION), len(ACOUSTIC))
  reference = vq.ResidualFSQ(levels=list(LEVELS), num_quantizers=num_stages, dim=len(LEVELS),
                             bound_hard_clamp=False, quantize_dropout=True).eval().double()
  scale = np.asarray(LEVELS) ** np.arange(num_stages)[:, None]
  params = quantiser_params(dims, num_stages, scale, projection)
  module = BDRFSQ(dims, (EMOTION, ACOUSTIC), num_stages, projection)
  u = np.random.default_rng(4).normal(size=(2, 50, len(LEVELS))).astype(np.float32)

  with torch.no_grad():
    out, indices, codes = reference(torch.tensor(u).double(), return_all_codes=True)
  ours = module.apply({'params': params}, u)
  np.testing.assert_array_equal(ours.indices, indices)
  np.testing.assert_allclose(ours.values, codes, atol=1e-5)  # pi_out is the identity
  latent = module.apply({'params': params}, ours.values, method=BDRFSQ.latent)
  np.testing.assert_allclose(latent, out, atol=1e-5)
  for m in range(1, num_stages + 1):  # each prefix of stages, from indices alone
    values = module.apply({'params': params}, ours.indices[..., :m], method=BDRFSQ.lookup)
    prefix = module.apply({'params': params}, values, method=BDRFSQ.latent)
    np.testing.assert_allclose(
        prefix, reference.get_output_from_indices(indices[..., :m]), atol=1e-5)


def block_linear(params, stage, direction):
  """Weight-normalised, block-diagonal `[in, out]` in float64, by PyTorch's weight norm."""
  blocks = []
  for p in params.values():
    v, g = (torch.tensor(p[f'{direction}_{x}'][stage]).double() for x in 'vg')
    blocks.append(torch._weight_norm(v.T.contiguous(), g[:, None], 0).T)
  return torch.block_diag(*blocks)


@pytest.mark.parametrize('projection', ['block', 'full'])
def test_bd_rfsq_equals_a_residual_loop_around_their_fsq(projection):
  """Random projections, gains, shifts and scales: the paper's equations with their FSQ inside."""
  num_stages, dims = 4, (5, 11)
  rng = np.random.default_rng(5)
  scale = rng.uniform(0.5, 2.0, (num_stages, len(LEVELS)))
  params = quantiser_params(dims, num_stages, scale, projection, rng)
  u = rng.normal(size=(2, 50, sum(dims))).astype(np.float32)
  module = BDRFSQ(dims, (EMOTION, ACOUSTIC), num_stages, projection)
  ours = module.apply({'params': params}, u)

  reference = vq.FSQ(list(LEVELS), preserve_symmetry=True)

  def joined(name, k):
    return torch.tensor(np.concatenate([p[name][k] for p in params.values()])).double()

  residual = start = torch.tensor(u).double()
  for k in range(num_stages):
    s = torch.nn.functional.softplus(joined('log_scale', k)) + 0.1
    z = s * (residual @ block_linear(params, k, 'in') - joined('shift', k))
    codes, index = reference(z)  # one composite index for both blocks
    out = (codes / s + joined('shift', k)) @ block_linear(params, k, 'out') + joined('out_b', k)
    residual = residual - out
    np.testing.assert_array_equal(ours.indices[..., k], index)
    latent = module.apply({'params': params}, ours.values[:k + 1], method=BDRFSQ.latent)
    np.testing.assert_allclose(latent, start - residual, atol=1e-5)
