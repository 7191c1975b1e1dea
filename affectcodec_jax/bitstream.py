"""The `.afc` token file: a 41-byte header and bit-packed codes, stage by stage.

docs/afc-format.md describes every byte. Needs only NumPy, neither JAX nor a model.
"""

from dataclasses import dataclass, replace
import math
import pathlib
import struct
import zlib

import numpy as np

from affectcodec_jax.errors import UserError
from affectcodec_jax.files import write_whole

MAGIC = b'AFCT'
VERSION = 1
# Magic, version, stages, bits a code, hop, sample rate, frames, samples, gain, fingerprint.
_FIELDS = struct.Struct('<4sBBBHIIQf8s')
_CRC = struct.Struct('<I')
HEADER_BYTES = _FIELDS.size + _CRC.size  # 41
_MAX_BITS = 16


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
  """

  codes: np.ndarray
  num_samples: int
  gain_db: float
  fingerprint: bytes
  bits_per_code: int = 15
  sample_rate: int = 16000
  hop_length: int = 320

  @property
  def shape(self):
    """`(frames, stages)`."""
    return self.codes.shape

  @property
  def kbps(self) -> float:
    """Bit rate of the codes in kbit/s, header not counted."""
    return self.shape[1] * self.bits_per_code * self.sample_rate / self.hop_length / 1000

  def __len__(self):
    return len(self.codes)

  def __array__(self, dtype=None, copy=None):
    return np.array(self.codes, dtype=dtype, copy=copy)

  def truncate(self, stages) -> 'Tokens':
    """The same recording at the lower rate of its first `stages` stages."""
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
  problem = _problem(stages, tokens.bits_per_code, tokens.hop_length, tokens.sample_rate, frames,
                     tokens.num_samples, tokens.gain_db)
  if problem:
    raise UserError(f'cannot pack tokens: {problem}')
  if len(tokens.fingerprint) != 8:
    raise UserError(f'the model fingerprint must be 8 bytes, got {len(tokens.fingerprint)}')
  if codes.min() < 0 or codes.max() >= 2 ** tokens.bits_per_code:
    raise UserError(f'codes must lie in 0..{2 ** tokens.bits_per_code - 1} for '
                    f'{tokens.bits_per_code} bits, got {codes.min()}..{codes.max()}')
  fields = _FIELDS.pack(MAGIC, VERSION, stages, tokens.bits_per_code, tokens.hop_length,
                        tokens.sample_rate, frames, tokens.num_samples, tokens.gain_db,
                        tokens.fingerprint)
  payload = _pack_bits(codes.T.ravel(), tokens.bits_per_code)  # [stages * frames]: stage by stage
  return fields + _CRC.pack(zlib.crc32(payload, zlib.crc32(fields))) + payload


def unpack(data: bytes, name='token file') -> Tokens:
  """Inverse of `pack`. `name` begins the error messages.

  Raises:
    UserError: `data` is not exactly one intact token file of this version.
  """
  if not data:
    raise UserError(f'{name}: the file is empty; encode the recording again')
  if data[:4] != MAGIC[:len(data)]:
    raise UserError(f'{name}: not an .afc token file; make one with the encode command')
  if len(data) > 4 and data[4] != VERSION:
    raise UserError(f'{name}: format version {data[4]} is not supported, only {VERSION}; '
                    'use the release that wrote the file')
  if len(data) < HEADER_BYTES:
    raise UserError(f'{name}: truncated, the header takes {HEADER_BYTES} bytes and the file has '
                    f'{len(data)}; copy or encode it again')
  _, _, stages, bits, hop, rate, frames, samples, gain_db, fingerprint = _FIELDS.unpack_from(data)
  problem = _problem(stages, bits, hop, rate, frames, samples, gain_db)
  if problem:
    raise UserError(f'{name}: corrupt header ({problem}); copy or encode the file again')
  expected = HEADER_BYTES + (frames * stages * bits + 7) // 8
  if len(data) < expected:
    raise UserError(f'{name}: truncated, expected {expected} bytes and found {len(data)}; '
                    'copy or encode it again')
  if len(data) > expected:
    raise UserError(f'{name}: {len(data) - expected} trailing bytes after the expected {expected}; '
                    'copy or encode it again')
  payload = data[HEADER_BYTES:]
  crc, = _CRC.unpack_from(data, _FIELDS.size)
  if crc != zlib.crc32(payload, zlib.crc32(data[:_FIELDS.size])):
    raise UserError(f'{name}: corrupt, the checksum does not match; copy or encode it again')
  padding = 8 * len(payload) - frames * stages * bits
  if payload[-1] & ((1 << padding) - 1):
    raise UserError(f'{name}: corrupt, the padding bits are not zero; encode it again')
  codes = _unpack_bits(payload, stages * frames, bits).reshape(stages, frames)
  return Tokens(np.ascontiguousarray(codes.T), samples, gain_db, fingerprint, bits, rate, hop)


def write_tokens(path, tokens: Tokens):
  """Writes a token file; it appears whole or not at all, and an older one stays on failure.

  Raises:
    UserError: a value that the format cannot hold, or a place that cannot be written.
  """
  write_whole(path, pack(tokens))


def read_tokens(path) -> Tokens:
  """Reads a token file.

  Raises:
    UserError: no such file, unreadable, or not intact.
  """
  try:
    data = pathlib.Path(path).read_bytes()
  except FileNotFoundError as e:
    raise UserError(f'{path}: no such file; check the path') from e
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror}); give an .afc token file') from e
  return unpack(data, str(path))


def truncate_file(src, dst, stages):
  """Writes the first `stages` stages of the token file `src` to `dst`. Needs no model."""
  write_tokens(dst, read_tokens(src).truncate(stages))


def _problem(stages, bits, hop, rate, frames, samples, gain_db):
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
  if not math.isfinite(gain_db) or abs(gain_db) > 1000:
    return f'gain of {gain_db} dB, must be within 1000 dB'
  return None


def _pack_bits(codes, bits) -> bytes:
  """Packs `[n]` codes of `bits` bits, most significant bit first, zeros after the last."""
  words = codes.astype('>u2').view(np.uint8).reshape(-1, 2)  # [n, 2]
  return np.packbits(np.unpackbits(words, axis=1)[:, 16 - bits:]).tobytes()


def _unpack_bits(payload, n, bits):
  """Inverse of `_pack_bits`: int32 `[n]`."""
  stream = np.unpackbits(np.frombuffer(payload, np.uint8), count=n * bits)
  words = np.zeros((n, 16), np.uint8)
  words[:, 16 - bits:] = stream.reshape(n, bits)
  return np.packbits(words, axis=1).view('>u2')[:, 0].astype(np.int32)
