"""What arrays people have: the unambiguous are taken for what they are, the rest refused in one line."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from affectcodec_jax import load
from affectcodec_jax.audio import to_mono
from affectcodec_jax.common.arrays import check_number
from affectcodec_jax.common.audio_reader import check_rate
from affectcodec_jax.common.errors import UserError


@pytest.fixture(scope='module')
def codec(untrained):
  return load(untrained)


@pytest.fixture(scope='module')
def tokens(codec):
  return codec.encode(SOUND, 16000)


SOUND = (0.3 * np.sin(np.arange(1600) * 0.1)).astype(np.float32)


@pytest.mark.parametrize('make', [
    lambda x: x[None], lambda x: x[:, None], lambda x: x[None, None], lambda x: np.stack([x, x], 1),
    lambda x: list(map(float, x)), jnp.asarray, lambda x: jnp.asarray(x)[None],
    lambda x: x.astype(np.float64),
    lambda x: np.asfortranarray(np.stack([x, x], 1))[::1]])
def test_the_same_sound_in_other_arrays(make):
  np.testing.assert_allclose(to_mono(make(SOUND)), SOUND, atol=1e-6)


@pytest.mark.parametrize('make, tolerance', [
    (lambda x: np.round(x * 32768).astype(np.int16), 1e-4),
    (lambda x: np.round(x * 2 ** 31).astype(np.int32), 1e-6),
    (lambda x: np.round(x * 128).astype(np.int8), 1e-2),
    (lambda x: np.round(x * 128 + 128).astype(np.uint8), 1e-2),
    (lambda x: x.astype(np.float16), 1e-3), (lambda x: jnp.asarray(x, jnp.bfloat16), 2e-3)])
def test_full_scale_is_that_of_the_type(make, tolerance):
  """uint8 was half level with DC."""
  np.testing.assert_allclose(to_mono(make(SOUND)), SOUND, atol=tolerance)


def test_torch_tensors():
  torch = pytest.importorskip('torch')
  tensor = torch.from_numpy(SOUND)
  for made in (tensor, tensor[None], tensor.clone().requires_grad_(), tensor.double(),
               (tensor * 32767).to(torch.int16)):
    np.testing.assert_allclose(to_mono(made), SOUND, atol=1e-4)
  np.testing.assert_allclose(to_mono(tensor.bfloat16()), SOUND, atol=2e-3)


@pytest.mark.parametrize('audio, message', [
    (np.stack([SOUND, SOUND]), r'shape \[2, 1600\] would be 2 samples of 1600 channels'),
    (np.zeros((2, 16000, 2)), r'shape \[2, 16000, 2\]'),
    ([0, 100, -100] * 100, 'samples are int64'),
    (np.zeros(100, np.int64), 'int64'), (np.zeros(100, np.uint16), 'uint16'), (np.zeros(100, bool), 'bool'),
    (SOUND + 0j, 'complex64'), (np.array(['a', 'b']), '<U1'), (np.array([1.0, None]), 'object'),
    ([[1.0, 2.0], [3.0]], 'not an array'), (0.5, r'shape \[\]'), (np.zeros(0), 'no samples'),
    (None, 'object'), (np.array([0.0, np.nan]), 'NaN'), ({'array': SOUND}, 'object'), ('in.wav', '<U6'),
    (np.ma.masked_less(SOUND, 0), 'masked'), (bytes(100), 'bytes'), (bytearray(100), 'frombuffer'),
    (SOUND * 1e31, 'are no sound')])
def test_a_guess_is_refused(audio, message):
  with pytest.raises(UserError, match=message):
    to_mono(audio)


@pytest.mark.parametrize('bad', ['x', 'high', float('nan'), True, [3], 2.0])
def test_rates_that_are_none(codec, bad):
  with pytest.raises(UserError):
    codec.encode(SOUND, 16000, kbps=bad)


@pytest.mark.parametrize('bad', ['16000', 0, -16000, 1, float('nan'), float('inf'), None, True, 1e6])
def test_sample_rates_that_are_none(codec, bad):
  with pytest.raises(UserError, match='sample rate .*4000 to 768000 Hz'):
    codec.encode(SOUND, bad)


@pytest.mark.parametrize('make', [np.int64, np.array, jnp.int32])
def test_scalars_of_a_library_are_numbers(make):
  assert check_rate(make(16000)) == 16000 and check_number(make(3), 'kbps') == 3


@pytest.mark.parametrize('call, message', [
    (lambda codec, tokens: codec.encode_batch(None, 16000), 'give a list of them, got one NoneType'),
    (lambda codec, tokens: codec.encode_batch(SOUND, 16000), r'shape \[\]'),
    (lambda codec, tokens: codec.decode_batch(tokens), 'give a list of them, got one Tokens'),
    (lambda codec, tokens: codec.decode_batch([tokens], batch='x'), 'a whole number from 1 on'),
    (lambda codec, tokens: load(None), 'the name of a folder, got NoneType'),
    (lambda codec, tokens: load('x' * 5000), 'no such folder')])
def test_one_in_place_of_many_and_no_name(codec, tokens, call, message):
  with pytest.raises(UserError, match=message):
    call(codec, tokens)


@pytest.mark.parametrize('field, value', [
    ('gain_db', float('nan')), ('gain_db', float('inf')), ('gain_db', 'x'), ('gain_db', 1e4),
    ('num_samples', 10 ** 6), ('num_samples', 'x'), ('codes', np.zeros(5, np.int32)),
    ('codes', np.full((5, 3), -1)), ('codes', np.full((5, 3), 1.5)), ('fingerprint', 'x')])
def test_tokens_that_cannot_be(codec, tokens, field, value):
  """`gain_db` NaN decoded to NaN."""
  with pytest.raises(UserError):
    codec.decode(dataclasses.replace(tokens, **{field: value}))


def test_streams_take_no_transposed_codes(codec, tokens):
  codes = tokens.codes
  decoder = codec.stream_decoder(codec.stage_kbps, chunk_frames=2)
  with pytest.raises(UserError, match=r'\[frames, 1 to 3 stages\], got int32 \[3, 5\]'):
    decoder.push(codes.T)
  assert len(decoder.push(codes)) + len(decoder.flush()) == 1600
  with pytest.raises(UserError, match='lost frames'):
    decoder.push_lost('x')
  for gain in ('x', None, float('nan'), 1000):
    with pytest.raises(UserError, match='gain'):
      codec.stream_decoder(gain_db=gain)
  with pytest.raises(UserError, match='utterance must be an embedding'):
    codec.stream_encoder(utterance=['a'] * 16)
