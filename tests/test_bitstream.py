"""The token file: exact sizes, the prefix rule, and rejection of everything that is not intact."""

import itertools
import os
import struct
import sys
import zlib

import numpy as np
import pytest

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.tokens import afc
from affectcodec_jax.tokens.afc import Tokens

HEADER = afc.HEADER_BYTES


def make_tokens(frames=500, stages=2, bits=15, seed=0, **kwargs):
  codes = np.random.default_rng(seed).integers(0, 2 ** bits, (frames, stages), dtype=np.int32)
  kwargs = {'num_samples': frames * 320 - 7, 'gain_db': -3.25, 'fingerprint': b'\x01model\xff\x00',
            **kwargs}
  return Tokens(codes, bits_per_code=bits, **kwargs)


def reference_payload(codes, bits):
  """The rule of docs/afc-format.md on strings of '0' and '1'."""
  text = ''.join(f'{code:0{bits}b}' for stage in codes.T.tolist() for code in stage)
  text += '0' * (-len(text) % 8)
  return bytes(int(text[i:i + 8], 2) for i in range(0, len(text), 8))


def with_header(data, **fields):
  """`data` with header fields replaced and the checksum made to fit."""
  names = 'magic version stages bits hop rate frames samples gain fingerprint'.split()
  layout = struct.Struct('<4sBBBHIIQf8s')
  values = {**dict(zip(names, layout.unpack_from(data))), **fields}
  return with_crc(layout.pack(*values.values()) + data[layout.size:])


def with_crc(data):
  return data[:37] + struct.pack('<I', zlib.crc32(data[:37] + data[41:])) + data[41:]


@pytest.mark.parametrize('seed', range(60))
def test_round_trip(seed):
  rng = np.random.default_rng(seed)
  frames, stages, bits = (int(rng.integers(1, n)) for n in (90, 12, 17))
  hop = int(rng.integers(1, 700))
  tokens = make_tokens(
      frames, stages, bits, seed, hop_length=hop, sample_rate=int(rng.integers(1, 96000)),
      num_samples=frames * hop - int(rng.integers(0, hop)), gain_db=float(np.float32(rng.normal())))
  data = afc.pack(tokens)
  assert data[HEADER:] == reference_payload(tokens.codes, bits)
  back = afc.unpack(data)
  assert back.codes.dtype == np.int32
  np.testing.assert_array_equal(back.codes, tokens.codes)
  for field in ('num_samples', 'gain_db', 'fingerprint', 'bits_per_code', 'sample_rate',
                'hop_length'):
    assert getattr(back, field) == getattr(tokens, field), field
  assert afc.pack(back) == data


@pytest.mark.parametrize('value', ['zeros', 'ones'])
@pytest.mark.parametrize('bits', [1, 8, 15, 16])
def test_extreme_codes(bits, value):
  codes = np.full((3, 3), 0 if value == 'zeros' else 2 ** bits - 1, np.int32)
  tokens = Tokens(codes, 960, 0.0, bytes(8), bits)
  np.testing.assert_array_equal(afc.unpack(afc.pack(tokens)).codes, codes)


def test_exact_size_and_rate():
  tokens = make_tokens(500, 2, num_samples=160000)  # 10 s
  assert HEADER < 64
  assert len(afc.pack(tokens)) == HEADER + 1875
  assert tokens.kbps == 1.5
  assert tokens.kbps * 1000 * 10 / 8 == 1875
  assert tokens.shape == (500, 2) and len(tokens) == 500
  np.testing.assert_array_equal(np.asarray(tokens), tokens.codes)
  assert np.asarray(tokens, np.int64).dtype == np.int64


@pytest.mark.parametrize('frames', [1, 2, 7, 8, 501])
def test_truncation_is_a_prefix_of_the_bits(frames):
  tokens = make_tokens(frames, 8)
  whole = np.unpackbits(np.frombuffer(afc.pack(tokens)[HEADER:], np.uint8))
  for stages in range(1, 9):
    data = afc.pack(tokens.truncate(stages))
    payload = np.unpackbits(np.frombuffer(data[HEADER:], np.uint8))
    size = frames * stages * 15
    np.testing.assert_array_equal(payload[:size], whole[:size])
    assert not payload[size:].any() and len(payload) - size < 8
    back = afc.unpack(data)
    np.testing.assert_array_equal(back.codes, tokens.codes[:, :stages])
    assert back.num_samples == tokens.num_samples


def test_truncate_file(tmp_path):
  tokens = make_tokens(33, 8)
  afc.write_tokens(tmp_path / 'a.afc', tokens)
  afc.truncate_file(tmp_path / 'a.afc', tmp_path / 'b.afc', 4)
  assert (tmp_path / 'b.afc').read_bytes() == afc.pack(tokens.truncate(4))
  for stages in (0, 9, -1):
    with pytest.raises(UserError, match='choose 1 to 8'):
      afc.truncate_file(tmp_path / 'a.afc', tmp_path / 'c.afc', stages)
  assert not (tmp_path / 'c.afc').exists()


def test_every_corrupted_byte_is_rejected():
  data = afc.pack(make_tokens(41, 3))
  for i in range(len(data)):
    for flip in (0x01, 0x02, 0x10, 0x80, 0xff):
      bad = bytearray(data)
      bad[i] ^= flip
      with pytest.raises(UserError):
        afc.unpack(bytes(bad))


def test_every_truncated_length_is_rejected():
  data = afc.pack(make_tokens(41, 3))
  for size in range(len(data)):
    with pytest.raises(UserError, match='empty' if size == 0 else 'truncated') as e:
      afc.unpack(data[:size], 'x.afc')
    assert str(e.value).startswith('x.afc: ') and '\n' not in str(e.value)


def test_messages():
  data = afc.pack(make_tokens(5, 2))  # 150 bits: two bits of padding
  cases = {
      'not an .afc token file': b'RIFF' + data[4:],
      'format version 3 is not supported, only 1 and 2': with_header(data, version=3),
      f'expected {len(data)} bytes and found {len(data) - 1}': data[:-1],
      '3 trailing bytes': data + b'abc',
      'checksum does not match': data[:-1] + bytes([data[-1] ^ 4]),
      'padding bits are not zero': with_crc(data[:-1] + bytes([data[-1] | 1])),
      '0 stages': with_header(data, stages=0),
      '0 bits a code': with_header(data, bits=0),
      '17 bits a code': with_header(data, bits=17),
      'hop of 0': with_header(data, hop=0),
      'sample rate 0': with_header(data, rate=0),
      '0 frames': with_header(data, frames=0, samples=0),
      'make 6 frames, not 5': with_header(data, samples=1601),
      'make 4 frames, not 5': with_header(data, samples=1280),
      'gain of nan': with_header(data, gain=float('nan')),
      'gain of inf': with_header(data, gain=float('inf')),
  }
  for message, bad in cases.items():
    with pytest.raises(UserError) as e:
      afc.unpack(bad, 'x.afc')
    assert message in str(e.value) and '\n' not in str(e.value)


def test_huge_header_allocates_nothing():
  data = afc.pack(make_tokens(5, 2))
  bad = with_header(data, stages=255, frames=2 ** 32 - 1, samples=320 * (2 ** 32 - 1))
  with pytest.raises(UserError, match='truncated'):
    afc.unpack(bad)


@pytest.mark.parametrize('change, message', [
    ({'codes': np.full((5, 2), 2 ** 15)}, '0..32767'),
    ({'codes': np.full((5, 2), -1)}, '0..32767'),
    ({'codes': np.zeros((5, 2))}, 'integers'),
    ({'codes': np.zeros(5, np.int32)}, r'\[frames, stages\]'),
    ({'codes': np.zeros((5, 0), np.int32)}, '0 stages'),
    ({'codes': np.zeros((5, 256), np.int32)}, '256 stages'),
    ({'codes': np.zeros((0, 2), np.int32), 'num_samples': 0}, '0 frames'),
    ({'num_samples': 1601}, 'frames'),
    ({'gain_db': float('nan')}, 'gain'),
    ({'fingerprint': b'short'}, '8 bytes'),
    ({'fingerprint': '8 letter'}, '8 bytes'),
    ({'fingerprint': None}, '8 bytes'),
    ({'num_samples': 1600.0}, 'no number|cannot be interpreted'),
    ({'bits_per_code': 17}, '17 bits'),
    ({'sample_rate': 0}, 'sample rate'),
    ({'hop_length': 2 ** 16}, 'hop'),
])
def test_pack_refuses(change, message):
  fields = {'codes': np.zeros((5, 2), np.int32), 'num_samples': 1600, 'gain_db': 0.0,
            'fingerprint': bytes(8), **change}
  with pytest.raises(UserError, match=message):
    afc.pack(Tokens(**fields))


def test_numbers_may_be_those_of_arrays():
  fields = {'codes': np.zeros((5, 2), np.int16), 'gain_db': 0.0, 'fingerprint': bytes(8)}
  wanted = afc.pack(Tokens(num_samples=1600, **fields))
  for kind in (np.uint16, np.int32, np.uint64):
    assert afc.pack(Tokens(num_samples=kind(1600), **fields)) == wanted


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.afc'
  old = make_tokens(4, 2)
  afc.write_tokens(path, old)

  def fail(*args):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as m:
    m.setattr(os, 'replace', fail)
    with pytest.raises(UserError, match='No space left'):
      afc.write_tokens(path, make_tokens(9, 2))
  with pytest.raises(UserError):
    afc.write_tokens(path, make_tokens(4, 2, gain_db=float('inf')))
  assert os.listdir(tmp_path) == ['a.afc']
  assert path.read_bytes() == afc.pack(old)
  afc.write_tokens(path, make_tokens(9, 2))
  assert len(afc.read_tokens(path)) == 9
  assert os.listdir(tmp_path) == ['a.afc']


def test_file_messages(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    afc.read_tokens(tmp_path / 'none.afc')
  with pytest.raises(UserError, match='cannot be read'):
    afc.read_tokens(tmp_path)
  os.mkfifo(tmp_path / 'pipe')
  for output, message in ((tmp_path / 'no' / 'a.afc', 'no such folder'), (tmp_path, 'name of a file'),
                          ('', 'name of a file'), (tmp_path / 'pipe', 'not a regular file')):
    with pytest.raises(UserError, match=message):
      afc.write_tokens(output, make_tokens())
  (tmp_path / 'link').symlink_to('a.afc')  # what it points to is written
  afc.write_tokens(tmp_path / 'link', make_tokens())
  assert (tmp_path / 'link').is_symlink()
  assert (tmp_path / 'a.afc').read_bytes() == afc.pack(make_tokens())
  (tmp_path / 'a.afc').write_bytes(b'')
  with pytest.raises(UserError, match='a.afc: the file is empty'):
    afc.read_tokens(tmp_path / 'a.afc')
  (tmp_path / 'a.afc').write_text('hello, this is a text file')
  with pytest.raises(UserError, match='a.afc: not an .afc token file'):
    afc.read_tokens(tmp_path / 'a.afc')


def test_an_hour_takes_no_loop_over_codes():
  """As many lines of Python are executed for an hour as for a second: NumPy does the rest."""
  executed = {}
  for frames in (50, 180_000):
    tokens, count, before = make_tokens(frames, 8), itertools.count(), sys.gettrace()

    def trace(frame, event, arg, count=count):
      if event == 'line':
        next(count)
      return trace

    sys.settrace(trace)
    try:
      back = afc.unpack(afc.pack(tokens))
    finally:
      sys.settrace(before)
    np.testing.assert_array_equal(back.codes, tokens.codes)
    executed[frames] = next(count)
  assert 50 < executed[180_000] <= executed[50] + 5, executed  # give or take what is done at a first call


def test_hexdumps_of_the_format_page():
  """The examples in docs/afc-format.md are what `pack` writes."""
  codes = np.array([[1, 2], [3, 4], [32767, 16384]], np.int32)
  packed = Tokens(codes, 900, -6.5, bytes.fromhex('0011223344556677'))
  codes = np.stack([np.arange(12) % 3 * 9, np.full(12, 5)], axis=1)
  coded = Tokens(codes, 12 * 320, 0.0, bytes.fromhex('0011223344556677'), 5, digit_bits=(1, 2, 2))
  page = os.path.join(os.path.dirname(__file__), '..', 'docs', 'afc-format.md')
  dumps = []
  with open(page, encoding='utf-8') as f:
    for line in f:
      if line.startswith('000000') and '|' in line:
        dumps += [''] if line.startswith('00000000') else []
        dumps[-1] += line[8:].split('|')[0]
  assert [bytes.fromhex(d) for d in dumps] == [afc.pack(packed), afc.pack(coded)]
