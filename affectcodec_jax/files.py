"""Folders for results, and files that appear whole or not at all."""

import json
import os
import pathlib
import tempfile

from affectcodec_jax.errors import UserError


def make_folder(path):
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


def write_whole(path, data: bytes):
  """Writes a file; it appears whole or not at all, and an older one stays on failure.

  Raises:
    UserError: a place that cannot be written.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    temporary.write_bytes(data)
    os.replace(temporary, path)
  except OSError as e:
    raise UserError(f'{path}: cannot be written ({e.strerror}); choose another place') from e
  finally:
    try:
      os.unlink(temporary)
    except OSError:
      pass  # moved into place, or never made: a folder that cannot be written has been reported


def write_json(path, value):
  """Writes `value` as indented JSON, by `write_whole`."""
  write_whole(path, (json.dumps(value, indent=2) + '\n').encode())
