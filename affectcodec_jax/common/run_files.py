"""Files of a run or of a released codec besides checkpoints, which may lie in a bucket."""

import logging
import pathlib
import posixpath
import shutil
import tempfile

from affectcodec_jax.common import buckets
from affectcodec_jax.common.errors import UserError, describe
from affectcodec_jax.common.files import AnyPath, check_length

_READ = ('.json', '.jsonl', '.safetensors')  # what a start needs of them
_temporary = []  # folders that go with this process


def local(path: AnyPath) -> pathlib.Path:
  """A folder as a `Path`; of an address a temporary one with its files, until this process ends.

  Raises:
    UserError: of an address as `check`; nothing lies there.
  """
  if not buckets.is_address(path):
    return pathlib.Path(path)
  address = str(path)
  buckets.check(address)
  _temporary.append(tempfile.TemporaryDirectory(prefix='affectcodec-'))
  target = pathlib.Path(_temporary[-1].name)
  if not _download(address, target):
    raise UserError(f'{address}: holds neither a training run nor a released codec')
  return target


def _download(address, target):
  """Copies the files right below `address` that a start reads; returns their names."""
  fs, copied = buckets.file_system(), []
  with buckets.as_user_error(address):
    try:
      listed = fs.ls(address, detail=True)
    except FileNotFoundError:
      return []
    for info in listed:
      name = posixpath.basename(info['name'])
      if info['type'] == 'file' and name.endswith(_READ):
        fs.get_file(info['name'], str(target / name))
        check_length(target / name, int(info['size']))
        copied.append(name)
  return copied


class RunFiles:
  """The files of a run besides its checkpoints, in a folder of this machine; a context manager.

  Args:
    workdir: the run's folder, or its address: then they lie in a temporary folder, to which what is in
      the bucket is fetched, and `send` copies there what is new. At the end that is done once more, and
      the folder goes unless it failed.

  Attributes:
    folder: where they are.

  Raises:
    UserError: as `check`.
  """

  def __init__(self, workdir):
    self._address = str(workdir) if buckets.is_address(workdir) else None
    self._sent = {}  # name to (bytes, nanoseconds)
    if self._address is None:
      self.folder = pathlib.Path(workdir)
      return
    buckets.check(self._address)
    self.folder = pathlib.Path(tempfile.mkdtemp(prefix='affectcodec-run-'))
    for name in _download(self._address, self.folder):
      self._sent[name] = _state(self.folder / name)

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if self._address is None:
      return
    try:
      self.send()
    except UserError as e:
      if error is None:
        raise
      logging.warning('%s', e)  # what went wrong before is what is raised
      return
    shutil.rmtree(self.folder, ignore_errors=True)

  def send(self):
    """Copies to the bucket what is new or has changed, in the order of names.

    Raises:
      UserError: it cannot be written.
    """
    if self._address is None:
      return
    for path in sorted(p for p in self.folder.rglob('*') if p.is_file()):
      name, state = path.relative_to(self.folder).as_posix(), _state(path)
      if self._sent.get(name) != state:
        try:
          buckets.file_system().put_file(str(path), buckets.join(self._address, name))
        except Exception as e:  # of many kinds, see `buckets.as_user_error`
          raise UserError(f'{self._address}/{name}: cannot be written ({describe(e)}); the same '
                          f'command continues from the last checkpoint, {self.folder} has this file') from e
        self._sent[name] = state


def _state(path):
  stat = path.stat()
  return stat.st_size, stat.st_mtime_ns
