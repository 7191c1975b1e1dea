"""Adaptive range coding of one stage's codes, in integers alone: the same bytes on every machine.

A code is cut into digits of 1 to 4 bits, a digit into binary decisions from its highest bit down. Each
decision is coded with the counts of zeros and ones seen so far in its context: which digit, its value in
the frame before, and its higher bits. Nothing is trained or shipped. What it saves and what else was tried
is in docs/entropy-coding.md, every step of the arithmetic in docs/afc-format.md.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from affectcodec_jax.common.errors import UserError

MAX_DIGIT_BITS = 4
_COUNTED = 255  # at this sum both counts of a context are halved
_BOTTOM = 1 << 24
_TOP = 1 << 32


def encode(codes: np.ndarray, digit_bits: Sequence[int]) -> bytes:
  """Codes a stage.

  Args:
    codes: integers `[frames]`, of as many bits as `digit_bits` sum up to.
    digit_bits: bits of each digit, the lowest first, 1 to 4 each.

  Returns:
    The shortest bytes that `decode` reads as `codes`; it takes zeros to follow the last one.
  """
  contexts, bits = decisions(codes, digit_bits)
  ones, sums = _fresh_counts(digit_bits)
  out, low, width = bytearray(), 0, _TOP - 1
  for c, bit in zip(contexts.tolist(), bits.tolist()):
    bound = width // sums[c] * ones[c]
    if bit:
      width = bound
      ones[c] += 1
    else:
      low += bound
      width -= bound
    sums[c] += 1
    if sums[c] >= _COUNTED:
      _halve(ones, sums, c)
    while width < _BOTTOM:
      if low >= _TOP:
        _carry(out)
      out.append(low >> 24 & 0xff)
      low = low << 8 & 0xffffffff
      width <<= 8
  for size in range(5):  # the fewest last bytes that stay within [low, low + width)
    unit = 1 << 32 - 8 * size
    last = -(-low // unit) * unit
    if last < low + width:
      break
  if last >= _TOP:
    _carry(out)
  out += (last & 0xffffffff).to_bytes(4, 'big')[:size]
  return bytes(out).rstrip(b'\0')


def decode(data: bytes, frames: int, digit_bits: Sequence[int]) -> tuple[np.ndarray, int]:
  """Inverse of `encode`: int32 `[frames]`. Any bytes decode to some codes.

  Returns:
    The codes, and how many bytes of `data` they were read from: more than it has where zeros were read
    past its end.
  """
  ones, sums = _fresh_counts(digit_bits)
  digits = list(_digits(digit_bits))
  values = [0] * len(digits)
  codes = np.zeros(frames, np.int32)
  code, width, at = int.from_bytes(data[:4].ljust(4, b'\0'), 'big'), _TOP - 1, 4
  for t in range(frames):
    whole = 0
    for d, (bits, shift, start) in enumerate(digits):
      base, node = start + (values[d] << bits), 1
      for _ in range(bits):
        c = base + node
        bound = width // sums[c] * ones[c]
        if code < bound:
          width = bound
          ones[c] += 1
          node = 2 * node + 1
        else:
          code -= bound
          width -= bound
          node = 2 * node
        sums[c] += 1
        if sums[c] >= _COUNTED:
          _halve(ones, sums, c)
        while width < _BOTTOM:
          code = code << 8 | (data[at] if at < len(data) else 0)
          at += 1
          width <<= 8
      values[d] = node - (1 << bits)
      whole |= values[d] << shift
    codes[t] = whole
  return codes, at


def decisions(codes: np.ndarray, digit_bits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """The binary decisions behind a stage's codes `[frames]`, in the order in which they are coded.

  Returns:
    The number of each one's context and the bit itself, `[frames * sum(digit_bits)]` each.
  """
  codes = np.asarray(codes, np.int64)
  before = np.concatenate([[0], codes[:-1]])
  contexts, bits = [], []
  for n, shift, start in _digits(digit_bits):
    value, previous = codes >> shift & (1 << n) - 1, before >> shift & (1 << n) - 1
    for k in range(n):  # bits decided before this one; with a leading 1 they are a node of a binary tree
      contexts.append(start + (previous << n) + (1 << k | value >> n - k))
      bits.append(value >> n - 1 - k & 1)
  return np.stack(contexts, axis=1).ravel(), np.stack(bits, axis=1).ravel()


def num_contexts(digit_bits: Sequence[int]) -> int:
  """Contexts of a stage: 16 of a digit of 2 bits, of which 12 occur."""
  return sum(4 ** n for n in digit_bits)


def check_digits(digit_bits: Sequence[int], bits_per_code: int) -> None:
  """Refuses digits that do not make up a code.

  Raises:
    UserError: a digit of other than 1 to 4 bits, or not `bits_per_code` bits in all.
  """
  if sum(digit_bits) != bits_per_code or not all(1 <= n <= MAX_DIGIT_BITS for n in digit_bits):
    raise UserError(f'entropy coding needs digits of 1 to {MAX_DIGIT_BITS} bits that make up the '
                    f'{bits_per_code} of a code, got {", ".join(map(str, digit_bits))}')


def _digits(digit_bits: Sequence[int]) -> Iterator[tuple[int, int, int]]:
  """(bits, lowest bit in the code, first context) of each digit."""
  shift = start = 0
  for n in digit_bits:
    yield n, shift, start
    shift += n
    start += 4 ** n


def _fresh_counts(digit_bits: Sequence[int]) -> tuple[list[int], list[int]]:
  """Ones, and zeros and ones together, of every context: one of each."""
  n = num_contexts(digit_bits)
  return [1] * n, [2] * n


def _halve(ones: list[int], sums: list[int], c: int) -> None:
  zeros = sums[c] - ones[c] + 1 >> 1  # rounded up: never 0
  ones[c] = ones[c] + 1 >> 1
  sums[c] = zeros + ones[c]


def _carry(out: bytearray) -> None:
  at = len(out) - 1
  while out[at] == 0xff:
    out[at] = 0
    at -= 1
  out[at] += 1
