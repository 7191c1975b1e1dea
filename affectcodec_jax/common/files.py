"""Folders for results, and files that appear whole or not at all."""

import contextlib
import json
import os
import pathlib
import tempfile

from affectcodec_jax.common.errors import UserError

AnyPath = str | pathlib.Path  # of a file or a folder


def make_folder(path: AnyPath) -> pathlib.Path:
  """Creates a folder for results where there is none; returns it as a `Path`.

  Raises:
    UserError: it cannot be created, or not be written to.
  """
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as e:
    raise UserError(f'{path}: cannot be written to ({e.strerror})') from e
  return path


def check_file(path: AnyPath) -> pathlib.Path:
  """Where a file that is to be written lies, links followed.

  Raises:
    UserError: no folder to write it to, no name, or a folder or device in its place.
  """
  target = pathlib.Path(os.path.realpath(path))
  if not str(path) or not pathlib.Path(path).name or target.is_dir():
    raise UserError(f"'{path}': give the name of a file to write")
  if target.exists() and not target.is_file():
    raise UserError(f'{path}: not a regular file; choose another place')
  if not target.parent.is_dir():
    raise UserError(f'{target.parent}: no such folder to write to')
  return target


@contextlib.contextmanager
def whole(path: AnyPath):
  """A path to write to that becomes `path` when the block ends well; an older file stays on failure.

  Raises:
    UserError: a place that cannot be written.
  """
  target = check_file(path)
  temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
  try:
    yield temporary
    os.replace(temporary, target)
  except OSError as e:
    raise UserError(f'{path}: cannot be written ({e.strerror or e}); choose another place') from e
  finally:
    try:
      os.unlink(temporary)
    except OSError:
      pass  # moved into place, or never made: a folder that cannot be written has been reported


def write_whole(path: AnyPath, data: bytes) -> None:
  """Writes a file; it appears whole or not at all, and an older one stays on failure.

  Raises:
    UserError: a place that cannot be written.
  """
  with whole(path) as temporary:
    temporary.write_bytes(data)


def write_json(path: AnyPath, value) -> None:
  """Writes `value` as indented JSON, by `write_whole`."""
  write_whole(path, (json.dumps(value, indent=2) + '\n').encode())
