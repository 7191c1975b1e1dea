"""Programs are of the platform they are lowered for, not of the machine that traces them."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from affectcodec_jax import spectral
from affectcodec_jax.common.platforms import portable
from affectcodec_jax.models import layers


def _transforms(x):
  """`[B, 1024]` there and back."""
  return spectral.istft(*spectral.stft(x, 256, 64), 256, 64)


def _snake(x):
  return layers.Snake().apply({'params': {'alpha': jnp.ones(64)}}, x)


def _narrow(x):
  """A convolution of the discriminator's kind, of `[B, 1024]` as pictures of 16 by 64."""
  params = {'v': jnp.ones((3, 9, 1, 2)), 'g': jnp.ones(2), 'b': jnp.zeros(2)}
  return layers.Conv(2, (3, 9), strides=(1, 2)).apply({'params': params}, x.reshape(-1, 16, 64, 1))


_CASES = [  # an operation of the CPU's way, and one of the TPU's
    (_transforms, (2, 1024), 'stablehlo.fft', 'stablehlo.cosine'),
    (_snake, (2, 3, 64), 'stablehlo.round', 'stablehlo.sine'),
    (_narrow, (2, 1024), '(tensor<2x16x8x8xf32>, tensor<3x3x8x8xf32>) -> ', 'stride = [1, 2]')]


def _value_and_gradient(function):
  return jax.value_and_grad(lambda x: jnp.sum(function(x) ** 2))


@pytest.mark.parametrize('function, shape, on_cpu, on_tpu', _CASES)
def test_a_program_is_of_its_platform(function, shape, on_cpu, on_tpu):
  """Value and gradient, lowered here for both: each has its own way and not the other's."""
  traced = jax.jit(_value_and_gradient(function)).trace(jax.ShapeDtypeStruct(shape, jnp.float32))
  cpu, tpu = (traced.lower(lowering_platforms=(p,)).as_text() for p in ('cpu', 'tpu'))
  assert on_cpu in cpu and on_cpu not in tpu
  assert on_tpu in tpu and on_tpu not in cpu


@pytest.mark.parametrize('function, shape', [case[:2] for case in _CASES])
def test_a_choice_costs_nothing(function, shape, monkeypatch):
  """On a CPU the compiled program has no branch, and is to the bit what it is without a choice."""
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  compiled = jax.jit(_value_and_gradient(function)).lower(x).compile()
  assert 'conditional' not in compiled.as_text()
  chosen = compiled(x)
  on_cpu = lambda *args, default, cpu=None, **_: (cpu or default)(*args)
  for module in (spectral, layers):
    monkeypatch.setattr(module, 'by_platform', on_cpu)
  jax.tree.map(np.testing.assert_array_equal, chosen, jax.jit(_value_and_gradient(function))(x))


def test_an_exported_program_chooses_where_it_runs():
  """One for CPU and TPU runs here as the FFT; a portable one has matrices and no choice."""
  x = np.random.default_rng(0).normal(size=(2, 1024)).astype(np.float32)
  exported = export.export(jax.jit(_transforms), platforms=('cpu', 'tpu'))(x)
  assert 'fft' in exported.mlir_module() and 'stablehlo.cosine' in exported.mlir_module()
  np.testing.assert_array_equal(exported.call(x), jax.jit(_transforms)(x))
  with portable():
    text = jax.jit(lambda x: _transforms(x)).lower(x).as_text()
  assert 'stablehlo.case' not in text and 'fft' not in text


@pytest.mark.parametrize('window, num_mels', [(32, 5), (2048, 320), (400, 80), (960, 128)])
def test_mel_filters_of_two_numbers_a_bin_are_all_of_them(window, num_mels):
  np.testing.assert_array_equal(spectral.mel_matrix(window, num_mels), spectral.mel_basis(window, num_mels))
