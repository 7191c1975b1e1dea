"""Reads the variables of a CTranslate2 model, its `model.bin`, without CTranslate2.

The format is what the package's `ModelSpec.save` writes, version 6, all little-endian: version (uint32),
name of the architecture, its revision (uint32); a count (uint32) and as many variables: name, rank (uint8),
dimensions (uint32 each), kind (uint8), bytes (uint32), data; a count (uint32) and as many pairs of names,
an alias and what it stands for. A name is its length (uint16), its characters and a zero, which is counted.
"""

import math
import mmap
import struct

import ml_dtypes
import numpy as np

from affectcodec_jax.common.errors import UserError

_VERSION = 6
_KINDS = (np.float32, np.int8, np.int16, np.int32, np.float16, ml_dtypes.bfloat16)


def looks_like_model(start):
  """Whether a file that begins with these bytes, 8 or more, may be such a model, of any version."""
  return 1 <= int.from_bytes(start[:4], 'little') < 32 and start[6:7].isalpha()


def read_model(path):
  """Name of the architecture, and its variables `{name: array}`, aliases among them.

  Integer weights are brought back to float32 by their `…_scale`; other arrays are views of the file.

  Raises:
    UserError: no such file, or a damaged one.
  """
  try:
    with open(path, 'rb') as f:
      data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    return _parse(data)
  except FileNotFoundError as e:
    raise UserError(f'{path}: no such file') from e
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror})') from e
  except (ValueError, LookupError) as e:
    raise UserError(f'{path}: not a whole CTranslate2 model ({e}); fetch it again') from e


def _parse(data):
  at = 0

  def skip(count):
    """Where the next `count` bytes begin."""
    nonlocal at
    if count > len(data) - at:
      raise ValueError('it ends too early')
    at += count
    return at - count

  def number(kind):
    return struct.unpack_from('<' + kind, data, skip(struct.calcsize(kind)))[0]

  def name():
    count = number('H')
    start = skip(count)
    return data[start:start + count].rstrip(b'\0').decode()

  if (version := number('I')) != _VERSION:
    raise ValueError(f'of version {version}, should be {_VERSION}')
  architecture, _ = name(), number('I')
  variables = {}
  for _ in range(number('I')):
    key = name()
    shape = tuple(number('I') for _ in range(number('B')))
    dtype = np.dtype(_KINDS[number('B')])
    size, count = number('I'), math.prod(shape)
    if size != count * dtype.itemsize:
      raise ValueError(f'{key} has {size} bytes, should have {count * dtype.itemsize}')
    variables[key] = np.frombuffer(data, dtype, count, skip(size)).reshape(shape)
  for key, value in list(variables.items()):
    if value.dtype.kind == 'i' and key + '_scale' in variables:
      scale = variables.pop(key + '_scale').astype(np.float32)  # one in all, or one a row
      if scale.size not in (1, len(value)):
        raise ValueError(f'{key} has {len(value)} rows and {scale.size} scales')
      variables[key] = value.astype(np.float32) / scale.reshape(-1, *[1] * (value.ndim - 1))
  for _ in range(number('I')):
    alias, key = name(), name()
    variables[alias] = variables[key]
  if at != len(data):
    raise ValueError(f'{len(data) - at} bytes more than it says')
  return architecture, variables
