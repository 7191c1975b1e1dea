"""Google Cloud Storage: `gs://BUCKET/FOLDER` in the place of a folder, by gcsfs (requirements-gcs.txt).

Orbax writes checkpoints there itself. Objects cannot be appended to, so the other files of a run lie in a
folder of this machine and are copied (`common.run_files`). A file of speech is read whole.
"""

import contextlib
import functools
import logging
import os
import pathlib
import posixpath
import queue
import threading

from affectcodec_jax.common.errors import UserError, describe
from affectcodec_jax.common.files import AnyPath
from affectcodec_jax.common.retry import with_retries

_SCHEME = 'gs://'
_DEADLINE = 30.0  # seconds for the first answer; gcsfs itself tries for a minute
_ADVICE = 'check the name, the network and the rights (gcloud auth application-default login)'


def is_address(path: AnyPath) -> bool:
  """Whether a path is of a bucket."""
  return str(path).startswith(_SCHEME)


def check(address: str) -> None:
  """Makes sure that a bucket answers.

  Raises:
    UserError: gcsfs is not installed, there is no such bucket, no right to list it, or no network.
  """
  bucket, _, key = str(address).removeprefix(_SCHEME).partition('/')
  if not bucket:
    raise UserError(f'{address}: names no bucket; give gs://BUCKET/FOLDER')
  with as_user_error(address):
    try:
      _soon(lambda: file_system().call('GET', 'b/{}/o', bucket, prefix=key, maxResults=1, json_out=True))
    except FileNotFoundError as e:
      raise UserError(f'{address}: there is no bucket {bucket}, or none that may be read; {_ADVICE}') from e


def file_system():
  """The file system of gcsfs, one a process; Orbax and epath then have the same options.

  Raises:
    UserError: it is not installed.
  """
  return _file_system(os.getpid())


@functools.cache
def _file_system(pid):
  del pid  # a forked process has its own
  # Unless the user says otherwise: one interface for all buckets, whether or not TensorFlow is installed.
  os.environ.setdefault('EPATH_USE_TF', 'false')
  os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  for name in ('gcsfs', 'google.auth'):  # what they log with tracebacks ends in an error of one line here
    logging.getLogger(name).setLevel(logging.CRITICAL)
  try:
    import fsspec
    import gcsfs  # noqa: F401
  except ImportError as e:
    raise UserError("addresses of buckets need gcsfs; pip install -r requirements-gcs.txt") from e
  # Other processes write too, and so does tensorstore.
  fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)
  return fsspec.filesystem('gcs')


def _soon(ask):
  """`ask()`, or a TimeoutError after `_DEADLINE`."""
  answers = queue.SimpleQueue()

  def run():
    try:
      answers.put((ask(), None))
    except Exception as e:
      answers.put((None, e))

  threading.Thread(target=run, daemon=True).start()
  try:
    answer, error = answers.get(timeout=_DEADLINE)
  except queue.Empty as e:
    raise TimeoutError(f'no answer in {_DEADLINE:.0f} s') from e
  if error is not None:
    raise error
  return answer


@contextlib.contextmanager
def as_user_error(path: AnyPath):
  """Turns what goes wrong with a bucket into a `UserError`; errors of local paths pass."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # of gcsfs, aiohttp, google.auth, google.cloud and OSError
    if not is_address(path):
      raise
    raise UserError(f'{path}: {describe(e)}; {_ADVICE}') from e


def folder(path: AnyPath):
  """A folder as Orbax takes it: an absolute `pathlib.Path`, or an `epath.Path` of a bucket."""
  if not is_address(path):
    return pathlib.Path(path).absolute()
  file_system()  # sets its options
  from etils import epath
  return epath.Path(path)


def join(root: AnyPath, name: str) -> str:
  """The path of a file that a folder or manifest lists; `name` may be absolute or an address itself."""
  if is_address(name):
    return name
  if not is_address(root):
    return str(pathlib.Path(root, name))
  if name.startswith('/'):
    return name
  return _SCHEME + posixpath.normpath(f'{str(root).removeprefix(_SCHEME)}/{name}')


def move(source, target) -> None:
  """Moves a folder of `folder`; in a bucket its objects are copied, there, and then deleted."""
  if not is_address(source):
    source.rename(target)
    return
  with as_user_error(source):
    file_system().copy(str(source), str(target), recursive=True)
    file_system().rm(str(source), recursive=True)


# ---- Files that are read ----


@contextlib.contextmanager
def _as_os_errors():
  """What passes becomes a ConnectionError, which `common.retry` knows, and all else an OSError."""
  import gcsfs.retry
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    if gcsfs.retry.is_retriable(e) or isinstance(e, TimeoutError):
      raise ConnectionError(describe(e)) from e
    if isinstance(e, OSError):
      raise
    raise OSError(describe(e)) from e


def read(address: str) -> bytes:
  """What a file holds.

  Raises:
    OSError: FileNotFoundError, or ConnectionError for what another try may not meet.
  """
  fs = file_system()
  with _as_os_errors():
    return fs.cat_file(address)


def size_and_time(address: str) -> list[int]:
  """[bytes, nanoseconds of the last change] of a file.

  Raises:
    OSError: as `read`.
  """
  fs = file_system()
  with _as_os_errors():
    info = fs.info(address)
  if info['type'] != 'file':
    raise FileNotFoundError(address)
  return [int(info['size']), round(info['mtime'].timestamp() * 1e6) * 1000]


def names(address: str) -> list[str]:
  """Names of all files below a folder, as from there.

  Raises:
    UserError: as `check`.
  """
  check(address)
  root = address.removeprefix(_SCHEME).rstrip('/') + '/'
  with as_user_error(address):
    found = with_retries(file_system().find, root)
  return [name.removeprefix(root) for name in found if name.startswith(root)]
