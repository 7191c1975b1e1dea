"""Folders for results, and files that appear whole or not at all."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import secrets
import stat
import sys
import tempfile

from affectcodec_jax.common.errors import UserError

AnyPath = str | pathlib.Path  # of a file or a folder


def check_local(path: AnyPath) -> None:
  """Raises a `UserError` for an address: `pathlib` would make a folder `gs:` of it."""
  address = re.sub(r'^(\w{2,}):/+', r'\1://', str(path))  # a Path has one slash of the two
  if '://' in address:
    raise UserError(f'{address}: a folder or file of this machine is meant here; copy it, or mount the '
                    'bucket')


def make_folder(path: AnyPath) -> pathlib.Path:
  """Creates a folder for results where there is none; returns it as a `Path`.

  Raises:
    UserError: it cannot be created, or not be written to, or is no folder of this machine.
  """
  check_local(path)
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
    _try_folder(path)
  except OSError as e:
    raise UserError(f'{path}: cannot be written to ({e.strerror})') from e
  return path


@contextlib.contextmanager
def held_alone(folder: AnyPath):
  """Keeps other processes that ask for it out of a folder, until the block or this process ends.

  Raises:
    UserError: another one is at work there.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as e:
    os.close(descriptor)
    raise UserError(f'{folder}: another process is writing to it; wait for that, or choose another '
                    'folder') from e
  except OSError:
    pass  # a file system without locks
  try:
    yield
  finally:
    os.close(descriptor)


def check_file(path: AnyPath) -> pathlib.Path:
  """Where a file that is to be written lies, links followed.

  Raises:
    UserError: no folder to write it to or none that may be written to, no name, a write-protected file, or
      a folder or device in its place.
  """
  try:
    target = pathlib.Path(os.path.realpath(path))
    if not str(path) or not pathlib.Path(path).name or target.is_dir():
      raise UserError(f"'{path}': give the name of a file to write")
    if target.exists():
      if not target.is_file():
        raise UserError(f'{path}: not a regular file; choose another place')
      if not target.stat().st_mode & 0o222 or not os.access(target, os.W_OK):
        raise UserError(f'{path}: is write-protected; choose another place, or allow writing (chmod u+w)')
    if not target.parent.is_dir():
      raise UserError(f'{target.parent}: no such folder to write to')
    _try_folder(target.parent)
  except ValueError as e:  # a name with a zero byte in it
    raise UserError(f'{str(path)!r}: not a name of a file ({e})') from e
  except OSError as e:
    raise UserError(f'{path}: cannot be written ({e.strerror}); choose another place') from e
  return target


def _try_folder(path):
  """Rights alone do not say: read-only mounts, network file systems."""
  with tempfile.TemporaryFile(dir=path):
    pass


@contextlib.contextmanager
def whole(path: AnyPath):
  """A path to write to that becomes `path` when the block ends well; an older file stays on failure.

  What was written is on the disk before it takes the old one's place, and keeps its permissions.

  Raises:
    UserError: a place that cannot be written, a disk that is full.
  """
  target = check_file(path)
  # Short, so that any name that can be written has one; its letters may take four bytes each.
  # Random, for processes of several hosts.
  temporary = target.with_name(f'.{target.name[:40]}.{secrets.token_hex(4)}.tmp')
  try:
    before = target.stat() if target.exists() else None
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if before else 0o666))
    yield temporary
    if before:
      with contextlib.suppress(OSError):  # only root gives files away
        os.chown(temporary, before.st_uid, before.st_gid)
      os.chmod(temporary, stat.S_IMODE(before.st_mode))
    _flush(temporary)
    os.replace(temporary, target)
    with contextlib.suppress(OSError):  # not every file system can
      _flush(target.parent)
  except OSError as e:
    raise UserError(f'{path}: cannot be written ({e.strerror or e}); choose another place') from e
  finally:
    with contextlib.suppress(OSError):
      os.unlink(temporary)  # moved into place, or never made: a folder that cannot be written is reported


def _flush(path):
  """What is still in memory of a file goes to the disk; a full one shows here at the latest."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_whole(path: AnyPath, data: bytes) -> None:
  """Writes a file, whole or not at all: an older one stays on failure. '-' is standard output.

  Raises:
    UserError: a place that cannot be written.
  """
  if path == '-':
    return write_output(data)
  with whole(path) as temporary:
    temporary.write_bytes(data)
    check_length(temporary, len(data))


def check_length(path, length):
  """Raises OSError where a file is not so many bytes long: a write was lost."""
  found = os.stat(path).st_size
  if found != length:
    raise OSError(f'{found} of {length} bytes were written; is the disk full?')


def write_output(data: bytes):
  """Writes to standard output.

  Raises:
    UserError: it is a terminal or closed.
  """
  if sys.stdout is None:
    raise UserError('standard output is closed; give the name of a file')
  if sys.stdout.isatty():
    raise UserError('standard output is a terminal; give the name of a file, or pipe it on')
  try:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
  except OSError as e:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
    raise UserError(f'standard output: cannot be written ({e.strerror}), not all is out') from e


def write_json(path: AnyPath, value) -> None:
  """Writes `value` as indented JSON, by `write_whole`."""
  write_whole(path, (json.dumps(value, indent=2) + '\n').encode())


def differences(before: dict, now: dict) -> str:
  """The settings that are not as they were, in words."""
  return '; '.join(f'{k} {before.get(k)}, now {now.get(k)}' for k in now | before
                   if before.get(k) != now.get(k))


def read_bytes(path):
  """What a file holds; '-' is standard input.

  Raises:
    UserError: no such file, or not to be read.
  """
  try:
    if path == '-':
      if sys.stdin is None:
        raise UserError('standard input is closed; give the name of a file')
      return sys.stdin.buffer.read()
    if not str(path):
      raise UserError('no file is named; give the name of one')
    if stat.S_ISCHR(os.stat(path).st_mode):
      raise UserError(f'{path}: a device; give the name of a file')
    return pathlib.Path(path).read_bytes()
  except FileNotFoundError as e:
    raise UserError(f'{path}: no such file; check the path') from e
  except (OSError, ValueError) as e:
    raise UserError(f'{path}: cannot be read ({getattr(e, "strerror", None) or e})') from e


def parse_json(data):
  """The value of JSON in bytes or text.

  Raises:
    ValueError: not JSON, or nested so deep that no file of ours is.
  """
  try:
    return json.loads(data)
  except RecursionError as e:
    raise ValueError('nested too deep') from e
