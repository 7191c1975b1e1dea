"""Entropy coded token files: lossless, as short as their statistics allow, truncatable, or refused."""

import math
import struct
import zlib

import numpy as np
import pytest

from affectcodec_jax.analysis.codes import Clip
from affectcodec_jax.analysis.coding import coding, static_bits
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.models.codec import digit_bits
from affectcodec_jax.tokens import afc, entropy
from affectcodec_jax.tokens.afc import Tokens
from configs import base

STANDARD = (1, 1, 1, 2, 2, 2, 2, 2, 2)
LAYOUTS = [(1,), (4,), (2, 1), (3, 4, 1), STANDARD, (1,) * 15, (4, 4, 4, 4), (1,) * 16]
HEADER = afc.CODED_HEADER_BYTES


def kinds(frames, bits, seed=0):
  """Codes `[frames]` of several kinds: random, stuck, drifting, alternating, rare surprises."""
  rng = np.random.default_rng(seed)
  top = 2 ** bits - 1
  surprises = np.where(rng.random(frames) < 0.02, rng.integers(0, top + 1, frames), 0)
  return [rng.integers(0, top + 1, frames), np.zeros(frames, np.int64), np.full(frames, top),
          (np.arange(frames) // 7) & top, np.arange(frames) % 2 * top, surprises]


def make_tokens(frames=60, stages=4, layout=STANDARD, seed=0):
  """Tokens whose stages are of different kinds, the first two of them random and stuck."""
  codes = np.stack([kinds(frames, sum(layout), seed)[k % 6] for k in range(stages)], axis=1)
  return Tokens(codes.astype(np.int32), frames * 320 - 7, -3.25, b'\x01model\xff\x00', sum(layout),
                digit_bits=layout)


def reference(codes, layout):
  """The rule of docs/afc-format.md with strings, a dictionary and integers of any size, hence no carries.

  Returns the stream, and -sum log2 p in floating point.
  """
  counts, low, width, shifted, ideal = {}, 0, 2 ** 32 - 1, 0, 0.0
  before = ['0' * n for n in layout]
  for code in codes:
    text = f'{code:0{sum(layout)}b}'
    for d, n in enumerate(layout):
      end = len(text) - sum(layout[:d])
      digit = text[end - n:end]
      for k, bit in enumerate(digit):
        zeros, ones = counts.get((d, before[d], digit[:k]), (1, 1))
        bound = width // (zeros + ones) * ones
        ideal -= math.log2((ones if bit == '1' else zeros) / (zeros + ones))
        low, width = (low, bound) if bit == '1' else (low + bound, width - bound)
        zeros, ones = zeros + (bit == '0'), ones + (bit == '1')
        if zeros + ones == 255:
          zeros, ones = -(-zeros // 2), -(-ones // 2)
        counts[d, before[d], digit[:k]] = zeros, ones
        while width < 2 ** 24:
          low, width, shifted = low * 256, width * 256, shifted + 1
      before[d] = digit
  for size in range(5):
    unit = 256 ** (4 - size)
    last = -(-low // unit) * unit
    if last < low + width:
      return last.to_bytes(4 + shifted, 'big').rstrip(b'\0'), ideal


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
def test_stages_are_lossless_and_as_the_page_says(layout):
  for frames in (1, 2, 5, 300):
    for codes in kinds(frames, sum(layout), frames):
      stream = entropy.encode(codes, layout)
      assert stream == reference(codes, layout)[0]
      back, used = entropy.decode(stream, frames, layout)
      np.testing.assert_array_equal(back, codes)
      assert used >= len(stream)


def test_size_is_the_ideal_code_length():
  """Rounding costs a decision at most log2(1 + 255 / 2^24) bits, and the end at most two bytes."""
  rng = np.random.default_rng(0)
  codes = np.cumsum(rng.integers(0, 3, 1500)) * 5 % 2 ** 15
  codes[::3] = codes[0]
  stream, ideal = entropy.encode(codes, STANDARD), reference(codes, STANDARD)[1]
  assert ideal - 16 < 8 * len(stream) < ideal + 16 + 1500 * 15 * 255 / 2 ** 24 * 1.45
  assert ideal < 0.95 * 1500 * 15  # so that there was something to save


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
def test_files_are_lossless_and_never_much_longer(layout):
  for frames, stages in ((1, 1), (1, 9), (13, 6), (250, 6)):
    tokens = make_tokens(frames, stages, layout)
    data = afc.pack(tokens)
    back = afc.unpack(data)
    np.testing.assert_array_equal(back.codes, tokens.codes)
    assert back.codes.dtype == np.int32 and back.digit_bits == layout
    assert afc.pack(back) == data
    packed = (frames * sum(layout) + 7) // 8
    sizes = 1 if packed < 128 else 2
    assert HEADER + stages * (sizes + -(-packed // 16)) <= len(data) <= HEADER + stages * (sizes + packed)


def test_truncation_is_coding_fewer_stages(tmp_path):
  tokens = make_tokens(90, 8)
  whole = afc.pack(tokens)
  (tmp_path / 'a.afc').write_bytes(whole)
  for stages in range(1, 9):
    data = afc.pack(tokens.truncate(stages))
    assert whole[HEADER:].startswith(data[HEADER:]) and (stages == 8 or len(data) < len(whole))
    np.testing.assert_array_equal(afc.unpack(data).codes, tokens.codes[:, :stages])
    afc.truncate_file(tmp_path / 'a.afc', tmp_path / 'b.afc', stages)
    assert (tmp_path / 'b.afc').read_bytes() == data


def test_golden_bytes():
  """The same on every machine and in every release."""
  codes = (np.arange(40)[:, None] // [4, 3] * [5, 77] + [0, 9]) % 2 ** 15
  data = afc.pack(Tokens(codes, 40 * 320, 1.5, b'fixed id', digit_bits=STANDARD))
  assert data.hex() == GOLDEN


GOLDEN = ('4146435402020f4001803e00002800000000320000000000000000c03f6669786564206964af2a11e38dbe19ff'
          'fffffeddbcc68e8807cac022b17f848f68b71b37bc5c09842b77fee3584fde0802a938b1cdf1e85f388fc11ee4'
          '0b26b8da557c296d4724f11bad1d23b4b8a203bdd1d642')


def with_payload(data, payload=None, digits=None):
  """`data` with its payload or its digits replaced and the checksum made to fit."""
  fields = data[:37] + (data[37:39] if digits is None else struct.pack('<H', digits))
  payload = data[HEADER:] if payload is None else payload
  return fields + struct.pack('<I', zlib.crc32(fields + payload)) + payload


def test_every_corrupted_byte_and_truncated_length_is_refused():
  data = afc.pack(make_tokens(41, 4))
  for i in range(len(data)):
    for flip in (0x01, 0x10, 0x80, 0xff):
      bad = bytearray(data)
      bad[i] ^= flip
      with pytest.raises(UserError):
        afc.unpack(bytes(bad))
    with pytest.raises(UserError, match='truncated' if i else 'empty'):
      afc.unpack(data[:i])
  with pytest.raises(UserError, match='2 trailing bytes'):
    afc.unpack(data + b'ab')


def test_damage_under_a_checksum_that_fits():
  tokens = Tokens(np.array([[1], [1], [1], [1]] * 20), 80 * 320, 0.0, bytes(8), digit_bits=STANDARD)
  data = afc.pack(tokens)  # one stage, coded: a byte of size, then the stream
  size, stream = data[HEADER], data[HEADER + 1:]
  assert size == len(stream) < 80 * 15 // 8
  cases = {
      'stage 1 cannot take 9 bytes': bytes([9]) + stream[:9],
      'stage 1 cannot take 151 bytes': bytes([151 & 127 | 128, 1]) + bytes(151),
      f'stage 1 cannot take {size} bytes': bytes([size | 128, 0]) + stream,
      'a stage is longer than its codes': bytes([size + 1]) + stream + b'\0',
      'a stage is longer': bytes([size + 9]) + stream + bytes(8) + b'\1',
      'trailing bytes': data[HEADER:] + b'\0',
      'truncated, stage 1 of 1 is missing': b'',
      'truncated, expected': data[HEADER:-1],
  }
  for message, payload in cases.items():
    with pytest.raises(UserError, match=message) as e:
      afc.unpack(with_payload(data, payload), 'x.afc')
    assert str(e.value).startswith('x.afc: ') and '\n' not in str(e.value)
  for digits in (0, 0b10, 0b1, 1 << 15 | 0x7fff):  # none, none at bit 0, one of 15 bits, one past the code
    with pytest.raises(UserError, match='digits of 1 to 4 bits'):
      afc.unpack(with_payload(data, digits=digits))


def test_any_stream_decodes_to_something_or_is_refused():
  """No exception but `UserError`, whatever a stage holds."""
  data = afc.pack(make_tokens(40, 1, (3, 4, 1)))
  rng = np.random.default_rng(0)
  for _ in range(300):
    stream = rng.integers(0, 256, int(rng.integers(3, 40)), dtype=np.uint8).tobytes()
    try:
      assert afc.unpack(with_payload(data, bytes([len(stream)]) + stream)).shape == (40, 1)
    except UserError:
      pass


def test_huge_claims_allocate_nothing():
  """2^32 - 1 frames of one bit take 32 MiB a stage at least; a file without them is refused."""
  frames = 2 ** 32 - 1
  fields = struct.pack('<4sBBBHIIQf8sH', b'AFCT', 2, 255, 1, 1, 1, frames, frames, 0.0, bytes(8), 1)
  for payload in (b'\0', b'\x01\0', b'\xff' * 9, b'\x80\x80\x80\x80\x01' + bytes(99),
                  b'\x80' * 3000 + b'\x01'):
    with pytest.raises(UserError):
      afc.unpack(fields + struct.pack('<I', zlib.crc32(fields + payload)) + payload)


@pytest.mark.parametrize('layout', [(5, 5, 5), (1,) * 14, (0,) + (1,) * 15, (2,) * 8])
def test_digits_that_make_no_code_are_refused(layout):
  with pytest.raises(UserError, match='digits of 1 to 4 bits that make up the 15'):
    afc.pack(Tokens(np.zeros((5, 2), np.int32), 1600, 0.0, bytes(8), digit_bits=layout))


def test_digits_of_a_model():
  c = base.get_config().model
  assert digit_bits(c) == STANDARD
  c.quantizer = 'rvq'
  assert digit_bits(c) == (1,) * 15
  c.quantizer, c.acoustic_levels = 'bd_rfsq', (3, 5, 4)
  assert digit_bits(c) == (1,) * 9  # 2^3 * 60 codes


def test_measured_rates():
  """A stuck stage takes the least there is, 1/16; fixed tables of other speakers know a coin's odds."""
  rng = np.random.default_rng(0)
  clips = []
  for i in range(8):
    codes = np.zeros((800, 2), np.int32)
    codes[:, 1] = rng.random(800) < 0.1
    clips.append(Clip(codes, None, -1, f'speaker{i}', '', str(i)))
  result = coding(clips, (1, 1, 1), (1, 2))
  one, both = result['rates']
  assert result['speakers'] == 8 and one['nominal'] == 150 and both['nominal'] == 300
  least = 8 * (-(-300 // 16) + 1) / 16  # 300 bytes packed, one of size, 16 s
  assert one['coded']['low'] == one['coded']['high'] == pytest.approx(least)
  assert one['packed_file']['mean'] == pytest.approx((300 + 41) * 8 / 16)
  assert one['coded_file']['mean'] == pytest.approx(least + 43 * 8 / 16)
  entropy_bits = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
  fixed = static_bits(clips, (1, 1, 1))[:, 1].sum() / (8 * 800)
  assert abs(fixed - entropy_bits) < 0.03  # 6400 draws: a standard error of 0.012
