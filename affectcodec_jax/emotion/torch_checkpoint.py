"""Reads the tensors of a PyTorch checkpoint without PyTorch and without running anything it says.

A checkpoint is a zip of a pickle and of raw tensor data. A pickle names functions to call; here only
those that rebuild tensors are known, and every other name becomes a placeholder that does nothing.
"""

import collections
import io
import math
import os
import pickle
import pickletools
import zipfile

import ml_dtypes
import numpy as np

from affectcodec_jax.common.errors import UserError

_STORAGES = {
    'FloatStorage': np.float32, 'DoubleStorage': np.float64, 'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32,
    'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8, 'BoolStorage': np.bool_}
_SHARED = 4  # times the file's size that all its tensors together may have
_LEGACY = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # what the pickle of a file before PyTorch 1.6 begins with


class Placeholder:
  """What stands for an object of an unknown class: it takes anything and does nothing."""

  def __init__(self, *args, **kwargs):
    pass

  def __call__(self, *args, **kwargs):
    return Placeholder()

  def __setstate__(self, state):
    pass

  def __setitem__(self, key, value):
    pass

  def append(self, value):
    """Lists of a class of their own are filled so."""

  def extend(self, values):
    """The same, many at a time."""

  def add(self, value):
    """Sets are filled so."""


def read_checkpoint(path):
  """The object in a checkpoint: dicts, lists, numbers, and NumPy arrays for tensors.

  Raises:
    UserError: not such a file, or a damaged one.
  """
  try:
    with open(path, 'rb') as f:
      start = f.read(64)
    with zipfile.ZipFile(path) as archive:
      names = [n for n in archive.namelist() if n.endswith('data.pkl')]
      if len(names) != 1:
        raise UserError(f'{path}: a zip file, but not a PyTorch checkpoint')
      entries, size = archive.infolist(), os.path.getsize(path)
      if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(
          e.file_size for e in entries) > size:
        raise UserError(f'{path}: compressed, as PyTorch writes no checkpoint; save it again with PyTorch')
      data = archive.read(names[0])
      _check_places(data)
      return _Reader(io.BytesIO(data), archive, names[0].removesuffix('data.pkl'), size).load()
  except FileNotFoundError as e:
    raise UserError(f'{path}: no such file') from e
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror})') from e
  except zipfile.BadZipFile as e:
    raise UserError(f'{path}: {_what(start)}') from e
  except Exception as e:  # damaged pickles fail in every way there is
    if isinstance(e, UserError):
      raise
    raise UserError(f'{path}: damaged ({type(e).__name__}: {e}); fetch it again') from e


def _check_places(data):
  """Raises ValueError where a value has a place beyond the length of the pickle: all before it are made."""
  for code, argument, _ in pickletools.genops(data):
    if code.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and argument > len(data):
      raise ValueError(f'a place for {argument} values')


def _what(start):
  """What a file is that begins with these bytes and is no zip."""
  if start.startswith(b'PK'):
    return 'cut short or damaged; fetch it again'
  if _LEGACY in start[:16]:
    return 'in the format of PyTorch before 1.6; load it there and save it again with a newer PyTorch'
  if start.lstrip().startswith(b'<'):
    return 'a web page, not a PyTorch checkpoint; fetch the file itself'
  return 'not a PyTorch checkpoint'


class _Reader(pickle.Unpickler):
  """Restricted: no name in the pickle is ever imported."""

  def __init__(self, file, archive, folder, size):
    super().__init__(file, encoding='utf-8')
    self._archive, self._folder, self._storages = archive, folder, {}
    # Tensors may share data, but a small file has no use for large ones.
    self._left = _SHARED * size

  def find_class(self, module, name):
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if module == 'torch._utils' and name in ('_rebuild_tensor', '_rebuild_tensor_v2'):
      return self._rebuild
    if module == 'torch._utils' and name == '_rebuild_parameter':
      return lambda data, *rest: data
    if module in ('torch', 'torch.storage') and name in _STORAGES:
      return np.dtype(_STORAGES[name])
    return Placeholder

  def persistent_load(self, saved_id):
    _, dtype, key, _, count = saved_id
    if not isinstance(dtype, np.dtype):
      raise ValueError(f'tensor {key} is of an unknown kind')
    if key not in self._storages:
      data = self._archive.read(f'{self._folder}data/{key}')
      self._storages[key] = np.frombuffer(data, dtype)
    if len(self._storages[key]) < count:
      raise EOFError(f'tensor {key} is shorter than it says')
    return self._storages[key]


  def _rebuild(self, storage, offset, size, stride, *rest):
    self._left -= math.prod(size) * storage.itemsize
    if self._left < 0:
      raise ValueError('its tensors are larger than its data')
    return _view(storage, offset, size, stride)


def _view(storage, offset, size, stride):
  """A tensor from its storage `[n]`: a view by strides, which are checked to stay inside."""
  last = sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  end = offset if 0 in size else offset + last + 1
  if min([offset, *size, *stride]) < 0 or end > len(storage):
    raise EOFError('a tensor reaches beyond its data')
  strides = [s * storage.itemsize for s in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)
