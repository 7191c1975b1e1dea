"""Encoder, decoder and RVQ against the published DAC (`descript-audio-codec` 1.0.0), same weights.

requirements-parity.txt says how to install it. The reference runs in float64, so that what differs
is our float32.

Tolerance: 1e-5 of the largest output. Some 30 layers each sum 10 to 10^4 float32 terms: about 1e-7
of rounding a layer, and 1e-6 in the end. A wrong tap, axis or padding is of order 1.
"""

import importlib.util
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectcodec_jax.models.dac import Decoder, Encoder
from affectcodec_jax.models.rvq import RVQ

HOW = 'see requirements-parity.txt'
torch = pytest.importorskip('torch', reason=f'torch is not installed, {HOW}')

STRIDES = (2, 4, 5, 8)  # of DAC-16k; the hop is 320
TOLERANCE = 1e-5

# The published DAC uses PyTorch's older weight norm.
pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning')


@pytest.fixture(scope='module')
def dac():
  """DAC's module of networks. Its audio tools, which networks do not use, are replaced."""
  if importlib.util.find_spec('dac') is None:
    pytest.skip(f'descript-audio-codec is not installed, {HOW}')
  tools, ml, utils = (types.ModuleType(n) for n in ('audiotools', 'audiotools.ml', 'dac.utils'))
  ml.BaseModel = type('BaseModel', (torch.nn.Module,), {'INTERN': [], 'EXTERN': []})
  tools.ml, tools.AudioSignal, tools.STFTParams = ml, object, object
  with pytest.MonkeyPatch.context() as patch:
    for module in (tools, ml, utils):
      patch.setitem(sys.modules, module.__name__, module)
    return importlib.import_module('dac.model.dac')


def randomise(module, seed=0):
  """Random gains, biases and Snake slopes, so that none can hide behind its initial value."""
  torch.manual_seed(seed)
  with torch.no_grad():
    for name, p in module.named_parameters():
      if name.endswith('alpha'):
        p.copy_(torch.exp(0.5 * torch.randn_like(p)))
      elif name.endswith('weight_g'):
        p.mul_(1 + 0.3 * torch.rand_like(p))
      elif name.endswith('bias'):
        p.copy_(0.1 * torch.randn_like(p))
  return module


def array(tensor):
  return tensor.detach().numpy()


def conv(m):
  return {'v': array(m.weight_v).transpose(2, 1, 0),  # [out, in, kernel] -> [kernel, in, out]
          'g': array(m.weight_g).ravel(), 'b': array(m.bias)}


def conv_transpose(m):
  return {'v': array(m.weight_v).transpose(0, 2, 1),  # [in, out, kernel] -> [in, kernel, out]
          'g': array(m.weight_g).ravel(), 'b': array(m.bias)}


def snake(m):
  return {'alpha': array(m.alpha).ravel()}


def residual_unit(m):
  a, b, c, d = m.block
  return {'Snake_0': snake(a), 'Conv_0': conv(b), 'Snake_1': snake(c), 'Conv_1': conv(d)}


def encoder_params(reference):
  first, *blocks, last_snake, last = reference.block
  params = {'Conv_0': conv(first)}
  for i, m in enumerate(blocks):
    *units, activation, down = m.block
    params |= {f'ResidualUnit_{3 * i + j}': residual_unit(u) for j, u in enumerate(units)}
    params |= {f'Snake_{i}': snake(activation), f'Conv_{i + 1}': conv(down)}
  n = len(blocks)
  return params | {f'Snake_{n}': snake(last_snake), f'Conv_{n + 1}': conv(last)}


def decoder_params(reference):
  first, *blocks, last_snake, last, _ = reference.model
  params = {'Conv_0': conv(first)}
  for i, m in enumerate(blocks):
    activation, up, *units = m.block
    params |= {f'Snake_{i}': snake(activation), f'ConvTranspose_{i}': conv_transpose(up)}
    params |= {f'ResidualUnit_{3 * i + j}': residual_unit(u) for j, u in enumerate(units)}
  return params | {f'Snake_{len(blocks)}': snake(last_snake), 'Conv_1': conv(last)}


def check_shapes(module, params, x):
  """Every parameter of ours has one of theirs, of its shape, and none is left over."""
  ours = jax.eval_shape(lambda: module.init(jax.random.key(0), x))['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ours)


def check_close(ours, theirs):
  assert ours.shape == theirs.shape
  scale = np.abs(theirs).max()
  assert scale > 1e-2  # a network that says nothing would agree with anything
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize('width, latent, strides', [
    (4, 6, (2, 4, 8)), (4, 6, (8, 2)), (4, 6, STRIDES), (3, 5, (5, 3)), (64, 1024, STRIDES)])
def test_encoder_equals_dac(dac, width, latent, strides):
  """All frames, odd strides too: their extra sample of right padding makes no further frame."""
  reference = randomise(dac.Encoder(width, list(strides), latent))
  audio = np.random.default_rng(0).normal(size=(2, 7 * math.prod(strides))).astype(np.float32) / 3
  module, params = Encoder(width, strides, latent), encoder_params(reference)
  check_shapes(module, params, audio)
  ours = np.asarray(jax.jit(module.apply)({'params': params}, audio))
  theirs = array(reference.double()(torch.tensor(audio[:, None]).double())).transpose(0, 2, 1)
  assert ours.shape == (2, 7, latent)
  check_close(ours, theirs)


def decode_both(dac, width, latent, strides, frames, keep_length):
  reference = randomise(dac.Decoder(latent, width, list(strides)))
  x = np.random.default_rng(1).normal(size=(2, frames, latent)).astype(np.float32)
  module, params = Decoder(width, strides), decoder_params(reference)
  check_shapes(module, params, x)
  if keep_length:
    for m in reference.modules():
      if isinstance(m, torch.nn.ConvTranspose1d):
        m.output_padding = (m.stride[0] % 2,)
  ours = np.asarray(jax.jit(module.apply)({'params': params}, x))
  theirs = array(reference.double()(torch.tensor(x.transpose(0, 2, 1)).double()))[:, 0]
  assert ours.shape == (2, frames * math.prod(strides))
  return ours, theirs


@pytest.mark.parametrize('width, latent, strides, keep_length', [
    (32, 6, (8, 4, 2), False), (16, 6, (2, 8), False),
    (32, 6, STRIDES[::-1], True), (16, 6, (3, 5), True), (1536, 1024, STRIDES[::-1], True)])
def test_decoder_equals_dac(dac, width, latent, strides, keep_length):
  """All samples, with even strides as published.

  At an odd stride DAC crops one sample too many at the end. `keep_length` gives it back, by
  `output_padding`, and then all samples agree there too.
  """
  check_close(*decode_both(dac, width, latent, strides, 7, keep_length))


@pytest.mark.parametrize('width, latent', [(32, 6), (1536, 1024)])
def test_decoder_equals_published_dac_away_from_the_end(dac, width, latent):
  """DAC-16k as published gives 320 T - 8 samples, aligned at the start with our 320 T.

  Behind the stride of 5 its signal ends one sample early. Zero padding from there reaches back 39
  samples through residual units (3 * (1 + 3 + 9)), 1 to 2 through each transposed convolution and
  3 through the last: 445 samples before our end. All before that are equal; the end is not.
  """
  ours, theirs = decode_both(dac, width, latent, STRIDES[::-1], 4, keep_length=False)
  assert theirs.shape == (2, 4 * 320 - 8)
  end = 4 * 320 - 445
  check_close(ours[:, :end], theirs[:, :end])
  assert np.abs(ours[:, end:-8] - theirs[:, end:]).max() > TOLERANCE * np.abs(theirs).max()


def test_gradients_equal_those_of_dac(dac):
  """With respect to the input, through convolutions, Snake and weight norm of both networks."""
  encoder = randomise(dac.Encoder(4, list(STRIDES), 6))
  decoder = randomise(dac.Decoder(6, 32, [8, 4, 2]), seed=1)
  params = encoder_params(encoder), decoder_params(decoder)
  audio = np.random.default_rng(0).normal(size=(1, 1600)).astype(np.float32) / 3

  def ours(x):
    latent = Encoder(4, STRIDES, 6).apply({'params': params[0]}, x)
    return jnp.sum(jnp.square(Decoder(32, (8, 4, 2)).apply({'params': params[1]}, latent)))

  x = torch.tensor(audio).double().requires_grad_()
  decoder.double()(encoder.double()(x[:, None])).square().sum().backward()
  check_close(np.asarray(jax.jit(jax.grad(ours))(audio)), x.grad.numpy())


def test_rvq_equals_dac(dac):
  """Codes and every partial sum; their input projections get the zero bias that ours lack."""
  reference = dac.ResidualVectorQuantize(
      input_dim=12, n_codebooks=4, codebook_size=32, codebook_dim=3).eval()
  randomise(reference)

  def stacked(f):
    return np.stack([f(q) for q in reference.quantizers])

  def weight(m):
    return array(m.weight)[..., 0].T  # [out, in, 1] -> [in, out], norm applied

  x = np.random.default_rng(2).normal(size=(2, 25, 12)).astype(np.float32)
  theirs = torch.tensor(x.transpose(0, 2, 1))
  with torch.no_grad():
    for q in reference.quantizers:
      q.in_proj.bias.zero_()
    partial = [reference(theirs, n_quantizers=k)[0] for k in range(1, 5)]
    codes = reference(theirs)[1]
  params = {'in_w': stacked(lambda q: weight(q.in_proj)),
            'out_w': stacked(lambda q: weight(q.out_proj)),
            'out_b': stacked(lambda q: array(q.out_proj.bias)),
            'codebook': stacked(lambda q: array(q.codebook.weight))}
  module = RVQ(12, 4, 32, 3)
  ours = module.apply({'params': params}, x)
  np.testing.assert_array_equal(ours.indices, codes.numpy().transpose(0, 2, 1))
  for k in range(4):
    latent = module.apply({'params': params}, ours.values[:k + 1], method=RVQ.latent)
    check_close(np.asarray(latent), partial[k].numpy().transpose(0, 2, 1))
