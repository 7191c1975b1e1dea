"""Opens what sound is read from: files, pipes, standard input, objects in a bucket."""

import contextlib
import io
import os
import shutil
import stat
import sys
import tempfile

from affectcodec_jax.common import buckets
from affectcodec_jax.common.errors import UserError


@contextlib.contextmanager
def open_sound(path, pipes=True):
  """Opens a file to read from and to seek in; '-' is standard input, and what a pipe holds is kept aside.

  A file in a bucket is read whole.

  Args:
    path: the file.
    pipes: whether a pipe will do. In a data set it would be waited for, and read once only.

  Raises:
    UserError: not there, not to be read, or a folder or device.
  """
  name = 'standard input' if path == '-' else path
  with contextlib.ExitStack() as stack:
    try:
      if path == '-':
        if sys.stdin is None:
          raise UserError('standard input is closed; give the name of a file')
        file = stack.enter_context(open(sys.stdin.fileno(), 'rb', buffering=0, closefd=False))
        mode = os.fstat(file.fileno()).st_mode
      elif buckets.is_address(path):
        file, mode = io.BytesIO(buckets.read(path)), stat.S_IFREG
      else:
        if not str(path):
          raise UserError('no file is named; give the name of one')
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode))):
          raise UserError(f'{name}: not a regular file; give an audio file')
        file = stack.enter_context(open(path, 'rb', buffering=0))
      if stat.S_ISCHR(mode):
        raise UserError(f'{name}: a device or terminal; give the name of a file, or pipe one in')
      if not stat.S_ISREG(mode):
        kept = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        shutil.copyfileobj(file, kept)
        file = kept
    except FileNotFoundError as e:
      raise UserError(f'{name}: no such file') from e
    except (OSError, ValueError) as e:
      raise _failed(name, e) from e
    watched = _Watched(file)
    try:
      yield watched
    except UserError:
      if not watched.error:
        raise
    if watched.error:
      raise _failed(name, watched.error) from watched.error


class _Watched:
  """A file that keeps the first error of reading: decoders take one for damage, or for the end."""

  def __init__(self, file):
    self._file, self.error, self.tell = file, None, file.tell

  def seek(self, offset, whence=os.SEEK_SET):
    """As a file's, but before its beginning there is only that: damaged headers send decoders there."""
    try:
      return self._file.seek(offset, whence)
    except (OSError, ValueError):
      return self._file.seek(0)

  def read(self, size=-1):
    """As a file's; nothing after an error."""
    return self._try(self._file.read, size) or b''

  def readinto(self, buffer):
    """As a file's; nothing after an error."""
    return self._try(self._file.readinto, buffer) or 0

  def _try(self, read, what):
    if not self.error:
      try:
        return read(what)
      except OSError as e:
        self.error = e
    return None


def _failed(name, error):
  return UserError(f'{name}: cannot be read ({getattr(error, "strerror", None) or error})')
