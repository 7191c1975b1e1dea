"""The `.afc` token file: a header of 41 bytes and the codes, stage by stage, bit-packed or entropy coded.

docs/afc-format.md describes every byte. Needs only NumPy, neither JAX nor a model.
"""

from dataclasses import dataclass, replace
import math
import operator
import struct
import zlib

import numpy as np
import numpy.typing as npt

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import AnyPath, read_bytes, write_whole
from affectcodec_jax.tokens import entropy

MAGIC = b'AFCT'
PACKED, CODED = 1, 2  # format versions
# Magic, version, stages, bits a code, hop, sample rate, frames, samples, gain, fingerprint.
_FIELDS = struct.Struct('<4sBBBHIIQf8s')
_CRC = struct.Struct('<I')
_DIGITS = struct.Struct('<H')  # of version 2, between the fields and the checksum: where digits begin
HEADER_BYTES = _FIELDS.size + _CRC.size  # 41
CODED_HEADER_BYTES = HEADER_BYTES + _DIGITS.size  # 43
_MAX_BITS = 16
_MOST_SAVED = 16  # times smaller a coded stage may be: bounds what a reader makes of a hostile file


@dataclass(frozen=True, eq=False)
class Tokens:
  """What the encoder makes of one recording.

  Attributes:
    codes: composite indices, int32 `[frames, stages]`.
    num_samples: length of the recording in samples at `sample_rate`.
    gain_db: gain in dB applied before encoding; the decoder takes it off. Stored as float32.
    fingerprint: 8 bytes that name the model whose codes these are.
    bits_per_code: bits one code takes, 1 to 16.
    sample_rate: rate of the model in Hz.
    hop_length: samples a frame.
    digit_bits: bits of each digit of a code, the lowest first: the file is entropy coded by them. Without
      any it is bit-packed.
  """

  codes: np.ndarray
  num_samples: int
  gain_db: float
  fingerprint: bytes
  bits_per_code: int = 15
  sample_rate: int = 16000
  hop_length: int = HOP_LENGTH
  digit_bits: tuple[int, ...] = ()

  @property
  def shape(self) -> tuple[int, int]:
    """`(frames, stages)`."""
    frames, stages = self.codes.shape
    return frames, stages

  @property
  def kbps(self) -> float:
    """Bit rate of the codes in kbit/s, without header and entropy coding."""
    return self.shape[1] * self.bits_per_code * self.sample_rate / self.hop_length / 1000

  def __len__(self) -> int:
    return len(self.codes)

  def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
    return np.array(self.codes, dtype=dtype, copy=copy)

  def truncate(self, stages: int) -> 'Tokens':
    """The same recording at the lower rate of its first `stages` stages.

    Raises:
      UserError: there are not so many, or none is to be kept.
    """
    if not 1 <= stages <= self.shape[1]:
      raise UserError(f'cannot keep {stages} stages: the tokens have {self.shape[1]}; '
                      f'choose 1 to {self.shape[1]}')
    return replace(self, codes=self.codes[:, :stages])


def pack(tokens: Tokens) -> bytes:
  """Serialises `tokens`.

  Raises:
    UserError: a value that the format cannot hold.
  """
  codes = np.asarray(tokens.codes)
  if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
    raise UserError(f'codes must be integers [frames, stages], got {codes.dtype} {codes.shape}')
  frames, stages = codes.shape
  if problem := find_problem(tokens):
    raise UserError(f'cannot pack tokens: {problem}')
  if not isinstance(tokens.fingerprint, bytes) or len(tokens.fingerprint) != 8:
    raise UserError(f'the model fingerprint must be 8 bytes, got {tokens.fingerprint!r}')
  if codes.min() < 0 or codes.max() >= 2 ** tokens.bits_per_code:
    raise UserError(f'codes must lie in 0..{2 ** tokens.bits_per_code - 1} for '
                    f'{tokens.bits_per_code} bits, got {codes.min()}..{codes.max()}')
  fields = _FIELDS.pack(MAGIC, CODED if tokens.digit_bits else PACKED, stages, tokens.bits_per_code,
                        tokens.hop_length, tokens.sample_rate, frames, tokens.num_samples, tokens.gain_db,
                        tokens.fingerprint)
  if tokens.digit_bits:
    entropy.check_digits(tokens.digit_bits, tokens.bits_per_code)
    fields += _DIGITS.pack(sum(1 << first for first in np.cumsum((0, *tokens.digit_bits[:-1])).tolist()))
    payload = b''.join(_pack_stage(stage, tokens.digit_bits) for stage in codes.T)
  else:
    payload = _pack_bits(codes.T.ravel(), tokens.bits_per_code)  # [stages * frames]: stage by stage
  return fields + _CRC.pack(zlib.crc32(payload, zlib.crc32(fields))) + payload


def packed_size(tokens: Tokens) -> int:
  """Bytes of the file of `tokens` without entropy coding."""
  return HEADER_BYTES + (tokens.codes.size * tokens.bits_per_code + 7) // 8


def unpack(data: bytes, name: str = 'token file') -> Tokens:
  """Inverse of `pack`. `name` begins the error messages.

  Raises:
    UserError: `data` is not exactly one intact token file of this version.
  """
  if not data:
    raise UserError(f'{name}: the file is empty; encode the recording again')
  if data[:4] != MAGIC[:len(data)]:
    raise UserError(f'{name}: not an .afc token file; make one with the encode command')
  version = data[4] if len(data) > 4 else PACKED
  if version not in (PACKED, CODED):
    raise UserError(f'{name}: format version {version} is not supported, only {PACKED} and {CODED}; '
                    'use the release that wrote the file')
  header = HEADER_BYTES if version == PACKED else CODED_HEADER_BYTES
  if len(data) < header:
    raise UserError(f'{name}: truncated, the header takes {header} bytes and the file has '
                    f'{len(data)}; copy or encode it again')
  _, _, stages, bits, hop, rate, frames, samples, gain_db, fingerprint = _FIELDS.unpack_from(data)
  problem = _problem(stages, bits, hop, rate, frames, samples, gain_db)
  if problem:
    raise UserError(f'{name}: corrupt header ({problem}); copy or encode the file again')
  payload = data[header:]
  if version == PACKED:
    digit_bits: tuple[int, ...] = ()
    expected = header + (frames * stages * bits + 7) // 8
  else:
    begins, = _DIGITS.unpack_from(data, _FIELDS.size)
    digit_bits = _read_digits(begins, bits, name)
    streams, end = _find_stages(payload, stages, frames, bits, name)
    expected = header + end
  if len(data) < expected:
    raise UserError(f'{name}: truncated, expected {expected} bytes and found {len(data)}; '
                    'copy or encode it again')
  if len(data) > expected:
    raise UserError(f'{name}: {len(data) - expected} trailing bytes after the expected {expected}; '
                    'copy or encode it again')
  crc, = _CRC.unpack_from(data, header - _CRC.size)
  if crc != zlib.crc32(payload, zlib.crc32(data[:header - _CRC.size])):
    raise UserError(f'{name}: corrupt, the checksum does not match; copy or encode it again')
  if version == PACKED:
    codes = _unpack_bits(payload, stages * frames, bits, name).reshape(stages, frames)
  else:
    codes = np.stack([_unpack_stage(s, frames, digit_bits, name) for s in streams])
  return Tokens(np.ascontiguousarray(codes.T), samples, gain_db, fingerprint, bits, rate, hop, digit_bits)


def write_tokens(path: AnyPath, tokens: Tokens) -> None:
  """Writes a token file, whole or not at all: an older one stays on failure. '-' is standard output.

  Raises:
    UserError: a value that the format cannot hold, or a place that cannot be written.
  """
  write_whole(path, pack(tokens))


def read_tokens(path: AnyPath) -> Tokens:
  """Reads a token file; '-' is standard input.

  Raises:
    UserError: no such file, unreadable, or not intact.
  """
  return unpack(read_bytes(path), 'standard input' if path == '-' else str(path))


def truncate_file(src: AnyPath, dst: AnyPath, stages: int) -> None:
  """Writes the first `stages` stages of the token file `src` to `dst`. Needs no model.

  Raises:
    UserError: as `read_tokens`, `Tokens.truncate` and `write_tokens`.
  """
  write_tokens(dst, read_tokens(src).truncate(stages))


def find_problem(tokens: Tokens) -> str | None:
  """Why `tokens` cannot be, in words, or None; codes are not looked at beyond their shape."""
  shape = np.shape(tokens.codes)
  if len(shape) != 2:
    return f'codes of shape {list(shape)}, not [frames, stages]'
  try:  # plain numbers: those of NumPy may be unsigned, or too short for what is reckoned with them
    bits, hop, rate, samples = (operator.index(n) for n in (
        tokens.bits_per_code, tokens.hop_length, tokens.sample_rate, tokens.num_samples))
    return _problem(shape[1], bits, hop, rate, shape[0], samples, tokens.gain_db)
  except TypeError as e:
    return f'a field is no number ({e})'


def _problem(stages: int, bits: int, hop: int, rate: int, frames: int, samples: int,
             gain_db: float) -> str | None:
  """Why these header values cannot be, or None."""
  if not 1 <= stages <= 255:
    return f'{stages} stages, must be 1 to 255'
  if not 1 <= bits <= _MAX_BITS:
    return f'{bits} bits a code, must be 1 to {_MAX_BITS}'
  if not 1 <= hop < 2 ** 16:
    return f'hop of {hop} samples, must be 1 to {2 ** 16 - 1}'
  if not 1 <= rate < 2 ** 32:
    return f'sample rate {rate} Hz, must be 1 to {2 ** 32 - 1}'
  if not 1 <= frames < 2 ** 32:
    return f'{frames} frames, must be 1 to {2 ** 32 - 1}'
  if frames != -(-samples // hop):
    return f'{samples} samples at hop {hop} make {-(-samples // hop)} frames, not {frames}'
  if not math.isfinite(gain_db) or abs(gain_db) > 700:
    return f'gain of {gain_db} dB, must be within 700 dB'
  return None


def _pack_bits(codes: np.ndarray, bits: int) -> bytes:
  """Packs `[n]` codes of `bits` bits, most significant bit first, zeros after the last."""
  words = codes.astype('>u2').view(np.uint8).reshape(-1, 2)  # [n, 2]
  return np.packbits(np.unpackbits(words, axis=1)[:, 16 - bits:]).tobytes()


def _unpack_bits(payload: bytes, n: int, bits: int, name: str) -> np.ndarray:
  """Inverse of `_pack_bits`: int32 `[n]`."""
  padding = 8 * len(payload) - n * bits
  if payload[-1] & ((1 << padding) - 1):
    raise UserError(f'{name}: corrupt, the padding bits are not zero; encode it again')
  stream = np.unpackbits(np.frombuffer(payload, np.uint8), count=n * bits)
  words = np.zeros((n, 16), np.uint8)
  words[:, 16 - bits:] = stream.reshape(n, bits)
  return np.packbits(words, axis=1).view('>u2')[:, 0].astype(np.int32)


def _stage_sizes(frames: int, bits: int) -> tuple[int, int]:
  """Bytes of a stage that is bit-packed, and the fewest that it may take coded."""
  packed = (frames * bits + 7) // 8
  return packed, -(-packed // _MOST_SAVED)


def _pack_size(n: int) -> bytes:
  """Seven bits a byte, the lowest first; all bytes but the last have the highest bit set."""
  out = bytearray()
  while n > 0x7f:
    out.append(n & 0x7f | 0x80)
    n >>= 7
  return bytes(out) + bytes([n])


def _find_stages(payload: bytes, stages: int, frames: int, bits: int, name: str) -> tuple[list[bytes], int]:
  """The stream of each stage, and where the last one ends; a size alone is read where it is cut off."""
  packed, least = _stage_sizes(frames, bits)
  streams: list[bytes] = []
  at = 0
  for k in range(stages):
    size = shift = 0
    while True:
      if at >= len(payload):
        raise UserError(f'{name}: truncated, stage {k + 1} of {stages} is missing; copy or encode it again')
      byte = payload[at]
      size |= (byte & 0x7f) << shift
      at, shift = at + 1, shift + 7
      if byte < 0x80 or size > packed or shift > 35:  # no stage is so long: only zeros come after zeros
        break
    if not least <= size <= packed or byte >= 0x80 or (not byte and shift > 7):
      raise UserError(f'{name}: corrupt, stage {k + 1} cannot take {size} bytes; copy or encode it again')
    streams.append(payload[at:at + size])
    at += size
  return streams, at


def _pack_stage(codes: np.ndarray, digit_bits: tuple[int, ...]) -> bytes:
  """Size and stream of one stage `[frames]`: coded or, where that is no shorter, bit-packed."""
  bits = sum(digit_bits)
  packed, least = _stage_sizes(len(codes), bits)
  stream = entropy.encode(codes, digit_bits).ljust(least, b'\0')
  if len(stream) >= packed:
    stream = _pack_bits(codes, bits)
  return _pack_size(len(stream)) + stream


def _unpack_stage(stream: bytes, frames: int, digit_bits: tuple[int, ...], name: str) -> np.ndarray:
  """Codes `[frames]` of one stage's stream."""
  packed, least = _stage_sizes(frames, sum(digit_bits))
  if len(stream) == packed:
    return _unpack_bits(stream, frames, sum(digit_bits), name)
  codes, used = entropy.decode(stream, frames, digit_bits)
  if len(stream) > least and (used < len(stream) or not stream[-1]):
    raise UserError(f'{name}: corrupt, a stage is longer than its codes; encode it again')
  return codes


def _read_digits(begins: int, bits: int, name: str) -> tuple[int, ...]:
  """Bits of each digit of a code, from the bits that a digit begins at."""
  firsts = [i for i in range(_MAX_BITS) if begins >> i & 1]
  digit_bits = tuple(np.diff([*firsts, bits]).tolist())
  try:
    entropy.check_digits(digit_bits, bits)
  except UserError as e:
    raise UserError(f'{name}: corrupt header ({e}); copy or encode the file again') from e
  return digit_bits
