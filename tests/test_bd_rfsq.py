"""The quantiser's promises: full use of levels, bijection, no leakage, prefixes, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affectcodec_jax.models import fsq
from affectcodec_jax.models.bd_rfsq import BDRFSQ, _quantize
from affectcodec_jax.models.rvq import RVQ

LEVELS = ((2, 2, 2), (4, 4, 4, 4, 4, 4))
ALL = LEVELS[0] + LEVELS[1]
DIMS = (16, 48)


@pytest.fixture(scope='module', params=['block', 'full'])
def quantizer(request):
  module = BDRFSQ(DIMS, LEVELS, num_stages=8, projection=request.param)
  u = jax.random.normal(jax.random.key(0), (2, 10, sum(DIMS)))
  params = module.init(jax.random.key(1), u)['params']
  # Away from the symmetric start, as training would leave it.
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  return module, {'params': jax.tree.unflatten(tree, leaves)}, u


def latent_of(module, variables, u):
  """u_1 + ... + u_K."""
  return module.apply(variables, module.apply(variables, u).values, method=type(module).latent)


@pytest.mark.parametrize('level, bits', [(2, 0.999), (4, 1.97)])
def test_fsq_fills_its_levels(level, bits):
  """Entropy of the codes of N(0, 1) is near log2(level), where the usual bound gives 0.33 at 2."""
  z = np.random.default_rng(0).normal(size=(20000, 1)).astype(np.float32)
  _, digits = fsq.quantize(jnp.asarray(z), (level,))
  p = np.bincount(np.asarray(digits).ravel(), minlength=level) / len(z)
  assert -(p * np.log2(p)).sum() > bits


@pytest.mark.parametrize('level, error', [(2, 0.3634), (4, 0.1175)])
def test_gaussian_gain_is_near_the_best_quantiser(level, error):
  """Error against the Lloyd-Max optimum: equal at 2 levels; at 4, tanh's spacing costs 1.5 %."""
  z = np.random.default_rng(0).normal(size=(200000, 1)).astype(np.float32)
  gain, scale = fsq.gaussian_gain(level)
  codes, _ = fsq.quantize(jnp.asarray(z) * gain, (level,))
  assert np.mean((z - scale * np.asarray(codes)) ** 2) < 1.02 * error


def test_index_is_a_bijection():
  """All 32768 indices to codes and back, and split into 8 x 4096 and back."""
  index = np.arange(32768, dtype=np.int32)
  digits = np.asarray(fsq.index_to_digits(jnp.asarray(index), ALL))
  by_hand = np.stack([(index // p) % n for p, n in zip(np.cumprod((1,) + ALL[:-1]), ALL)], -1)
  np.testing.assert_array_equal(digits, by_hand)
  np.testing.assert_array_equal(fsq.digits_to_index(jnp.asarray(digits), ALL), index)
  assert len(np.unique(np.asarray(fsq.digits_to_codes(jnp.asarray(digits), ALL)), axis=0)) == 32768
  emotion, acoustic = fsq.split_index(index, LEVELS[0])
  assert emotion.max() == 7 and acoustic.max() == 4095
  np.testing.assert_array_equal(fsq.join_index(emotion, acoustic, LEVELS[0]), index)
  np.testing.assert_array_equal(emotion, fsq.digits_to_index(jnp.asarray(digits[:, :3]), LEVELS[0]))


def test_quantising_a_code_gives_the_code():
  index = jnp.arange(32768)
  codes = fsq.digits_to_codes(fsq.index_to_digits(index, ALL), ALL)
  again, digits = fsq.quantize(codes, ALL)
  np.testing.assert_array_equal(fsq.digits_to_index(digits, ALL), index)
  np.testing.assert_allclose(again, codes, atol=1e-6)  # one float32 rounding of tanh + (c - tanh)


def test_straight_through_gradient_is_that_of_tanh():
  z = jnp.linspace(-2, 2, 9)[:, None]
  grad = jax.grad(lambda z: fsq.quantize(z, (4,))[0].sum())(z)
  np.testing.assert_allclose(grad, 1 - np.tanh(np.asarray(z)) ** 2, atol=1e-6)


def test_no_leakage_between_blocks_in_value_or_gradient():
  """Changing U_a leaves every emotion output identical to the bit; cross Jacobians are exactly 0."""
  module = BDRFSQ(DIMS, LEVELS, num_stages=8)
  u = jax.random.normal(jax.random.key(0), (1, 3, sum(DIMS)))
  variables = module.init(jax.random.key(1), u)
  other = u.at[..., DIMS[0]:].set(jax.random.normal(jax.random.key(2), (1, 3, DIMS[1])))
  a, b = module.apply(variables, u), module.apply(variables, other)
  latents = [module.apply(variables, q.values, method=BDRFSQ.latent) for q in (a, b)]
  np.testing.assert_array_equal(latents[0][..., :DIMS[0]], latents[1][..., :DIMS[0]])
  np.testing.assert_array_equal(fsq.split_index(a.indices, LEVELS[0])[0],
                                fsq.split_index(b.indices, LEVELS[0])[0])
  assert np.any(np.asarray(a.indices) != np.asarray(b.indices))
  jacobian = jax.jacobian(lambda u: latent_of(module, variables, u))(u)
  e_by_a = jacobian[..., :DIMS[0], :, :, DIMS[0]:]
  a_by_e = jacobian[..., DIMS[0]:, :, :, :DIMS[0]]
  assert np.all(np.asarray(e_by_a) == 0) and np.all(np.asarray(a_by_e) == 0)
  assert np.any(np.asarray(jacobian) != 0)


def test_full_projection_does_leak():
  """The same probe sees leakage where there is some."""
  module = BDRFSQ(DIMS, LEVELS, num_stages=2, projection='full')
  u = jax.random.normal(jax.random.key(0), (1, 2, sum(DIMS)))
  variables = module.init(jax.random.key(1), u)
  jacobian = jax.jacobian(lambda u: latent_of(module, variables, u))(u)
  assert np.any(np.asarray(jacobian[..., :DIMS[0], :, :, DIMS[0]:]) != 0)


def test_scan_equals_an_unrolled_loop_with_residuals(quantizer):
  """Against a Python loop over the equations as the paper has them, which forms every residual.

  1e-5: the scan sums the same terms of order 1 in another order.
  """
  module, variables, u = quantizer
  out = module.apply(variables, u)
  names = ('emotion', 'acoustic') if module.projection == 'block' else ('joint',)
  levels = LEVELS if module.projection == 'block' else (ALL,)
  residuals = jnp.split(u, [DIMS[0]], axis=-1) if module.projection == 'block' else [u]
  for k in range(8):
    digits = []
    for i, name in enumerate(names):
      p = {n: x[k] for n, x in variables['params'][name].items()}
      part, digit, _ = _quantize(p, residuals[i], levels[i])
      residuals[i] = residuals[i] - part
      digits.append(digit)
    latent = module.apply(variables, out.values[:k + 1], method=BDRFSQ.latent)
    np.testing.assert_allclose(latent, u - jnp.concatenate(residuals, -1), atol=1e-5)
    np.testing.assert_array_equal(
        out.indices[..., k], fsq.digits_to_index(jnp.concatenate(digits, -1), ALL))


@pytest.mark.parametrize('stages', [1, 2, 4, 8])
def test_any_prefix_of_indices_decodes(quantizer, stages):
  """Looked-up values equal the quantiser's own; 1e-5 for tanh + (code - tanh) in float32."""
  module, variables, u = quantizer
  out = module.apply(variables, u)
  looked_up = module.apply(variables, out.indices[..., :stages], method=BDRFSQ.lookup)
  np.testing.assert_allclose(looked_up, out.values[:stages], atol=1e-5)


def test_bfloat16_input_gives_float32_codes(quantizer):
  module, variables, u = quantizer
  u16 = u.astype(jnp.bfloat16)
  np.testing.assert_array_equal(module.apply(variables, u16).indices,
                                module.apply(variables, u16.astype(jnp.float32)).indices)
  assert module.apply(variables, u16).values.dtype == jnp.float32


def test_calibration_puts_every_stage_to_work():
  """After calibration each further stage lowers the error, and the codes are in use."""
  module = BDRFSQ(DIMS, LEVELS, num_stages=8)
  u = jax.random.normal(jax.random.key(0), (8, 50, sum(DIMS)))
  u = u * jnp.linspace(0.3, 1.5, sum(DIMS)) + 0.5
  params = module.init(jax.random.key(1), u)['params']
  params = module.apply({'params': params}, u, method=BDRFSQ.calibrate)
  out = module.apply({'params': params}, u)
  latents = [module.apply({'params': params}, out.values[:m], method=BDRFSQ.latent) for m in range(9)]
  error = [float(jnp.mean((u - latent) ** 2)) for latent in latents]
  assert all(b < a for a, b in zip(error, error[1:]))
  # All 16 and 48 directions but for the last: of each a tenth to a third is left, by rounding.
  assert error[8] < 0.3 * error[0]
  index = np.asarray(out.indices)
  assert all(len(np.unique(index[..., k])) > 250 for k in range(8))


def test_a_refining_start_reads_what_is_left():
  """Stages read the same directions, the best code of one after the other: 4 levels, 8 times."""
  module = BDRFSQ(DIMS, LEVELS, num_stages=4, start='refine')
  u = jax.random.normal(jax.random.key(0), (8, 50, sum(DIMS)))
  params = module.init(jax.random.key(1), u)['params']
  params = module.apply({'params': params}, u, method=BDRFSQ.calibrate)
  v = params['acoustic']['in_v']
  np.testing.assert_array_equal(v, np.broadcast_to(v[:1], v.shape))
  values = module.apply({'params': params}, u).values
  read = np.asarray(u[..., 16:] @ v[0])
  errors = [np.mean((np.asarray(module.apply({'params': params}, values[:m], method=BDRFSQ.latent)
                                [..., 16:] @ v[0]) - read) ** 2) for m in range(5)]
  # An eighth of the variance is left by the first stage; less and less of what the residues leave, whose
  # tails grow heavier.
  assert errors[1] < 0.13 and errors[4] < 0.01, errors
  assert all(b < 0.6 * a for a, b in zip(errors, errors[1:])), errors


def test_a_faded_start_is_quieter_stage_by_stage():
  module = BDRFSQ(DIMS, LEVELS, num_stages=3, fade=0.5)
  params = module.init(jax.random.key(1), jnp.zeros((1, 2, sum(DIMS))))['params']
  norm = np.sqrt(np.sum(np.square(params['acoustic']['out_g']), axis=1))
  np.testing.assert_allclose(norm[1:] / norm[:-1], 0.5, rtol=1e-5)


def test_commitment_leaves_the_outer_codes_in_use():
  """300 steps of coding Gaussian noise: a commitment that could shrink the signal would leave them at 1 %.

  The best quantiser of a Gaussian, which calibration starts from, uses them in 32 % of the cases.
  """
  module = BDRFSQ(DIMS, LEVELS, num_stages=2)
  u = jax.random.normal(jax.random.key(0), (16, 50, sum(DIMS)))
  params = module.init(jax.random.key(1), u)['params']
  params = module.apply({'params': params}, u, method=BDRFSQ.calibrate)
  adam = optax.adam(1e-2)

  @jax.jit
  def step(params, state):
    def loss(p):
      out = module.apply({'params': p}, u)
      latent = module.apply({'params': p}, out.values, method=BDRFSQ.latent)
      return jnp.mean((u - latent) ** 2) + out.commitment.mean()
    grads = jax.grad(loss)(params)
    updates, state = adam.update(grads, state)
    return optax.apply_updates(params, updates), state

  state = adam.init(params)
  for _ in range(300):
    params, state = step(params, state)
  digits = np.asarray(fsq.index_to_digits(module.apply({'params': params}, u).indices, ALL))[..., 3:]
  outer = np.mean((digits == 0) | (digits == 3), axis=(0, 1, 3))  # of each stage
  assert (outer > 0.3).all(), outer


@pytest.mark.parametrize('size, drawn', [(0.5, 0), (1, 0), (10, 1)])
def test_commitment_draws_back_only_what_tanh_cuts_off(size, drawn):
  """Its derivative as the input grows: none while the signal is as large as the grid, above it beyond.

  Where tanh is flat no other loss can bring the encoder back: without this it may grow for ever.
  """
  module = BDRFSQ(DIMS, LEVELS, num_stages=1)
  u = jax.random.normal(jax.random.key(0), (4, 50, sum(DIMS)))
  params = module.init(jax.random.key(1), u)
  growth = jax.grad(lambda k: module.apply(params, k * size * u).commitment.sum())(1.0)
  # Float32 sums of 1800 values about 1: without gradient 1e-4 is left of them.
  assert growth > 1 if drawn else abs(growth) < 1e-3, growth


@pytest.mark.parametrize('rounding', [0.0, 0.25, 1.0])
def test_rounding_sets_in_by_degrees(rounding):
  """0 passes tanh(s (z - b)) on, 1 its code, between them a blend; indices are codes always."""
  z = jnp.asarray(np.random.default_rng(0).normal(size=(50, 9)), jnp.float32)
  codes, digits = fsq.quantize(z, ALL, rounding)
  grid = fsq.digits_to_codes(digits, ALL)
  np.testing.assert_allclose(codes, (1 - rounding) * jnp.tanh(z) + rounding * grid, atol=1e-6)
  np.testing.assert_array_equal(digits, fsq.quantize(z, ALL)[1])


def test_rvq_has_the_same_interface():
  """Shapes, lookup of prefixes, a nearest word by brute force, gradients to the input."""
  module = RVQ(dim=24, num_stages=3, codebook_size=64, codebook_dim=4)
  u = jax.random.normal(jax.random.key(0), (2, 5, 24))
  variables = module.init(jax.random.key(1), u)
  out = module.apply(variables, u)
  assert out.values.shape == (3, 2, 5, 4) and out.indices.shape == (2, 5, 3)
  looked_up = module.apply(variables, out.indices[..., :2], method=RVQ.lookup)
  np.testing.assert_allclose(looked_up, out.values[:2], atol=1e-5)
  p = variables['params']
  z = np.asarray(u @ p['in_w'][0]).reshape(-1, 4)
  book = np.asarray(p['codebook'][0])
  cosine = (z @ book.T) / np.linalg.norm(book, axis=1) / np.linalg.norm(z, axis=1)[:, None]
  np.testing.assert_array_equal(cosine.argmax(1).reshape(2, 5), out.indices[..., 0])
  grad = jax.grad(lambda u: latent_of(module, variables, u).sum())(u)
  assert float(jnp.abs(grad).max()) > 0


def test_rvq_starts_from_k_means_of_the_first_batch():
  """Most of 64 words are used by points in 64 clusters, at every stage, and lie nearer than untrained ones.

  Not all: k-means from random points leaves some clusters two words and some words two clusters.
  """
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(64, 24))
  u = jnp.asarray(np.repeat(centres, 16, axis=0)[None] + 0.01 * rng.normal(size=(1, 1024, 24)), jnp.float32)
  module = RVQ(dim=24, num_stages=3, codebook_size=64, codebook_dim=8)
  variables = module.init(jax.random.key(1), u)
  started = {'params': module.apply(variables, u, method=RVQ.calibrate)}
  before, after = (module.apply(v, u) for v in (variables, started))
  used = [len(np.unique(after.indices[..., k])) for k in range(3)]
  assert min(used) >= 48, used
  assert (np.asarray(after.commitment) < 0.5 * np.asarray(before.commitment)).all()
