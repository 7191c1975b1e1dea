"""What is known of many recordings, in one block of bytes that all processes of a machine share."""

import hashlib
import json
import mmap
import os

import numpy as np

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import write_whole
from affectcodec_jax.common.places import cache_folder


class Rows:
  """A sequence of dicts, kept as JSON: a tenth of the memory, and a dict is made when it is asked for.

  Pickled, it is the name of a file in the user's cache, which other processes map into their memory. Where
  there is no cache, it is all of the block.
  """

  def __init__(self, rows):
    encode = json.JSONEncoder(sort_keys=True).encode  # `json.dumps` would make one for each row
    texts = [encode(row).encode() for row in rows]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    self._set(ends.tobytes() + b''.join(texts), len(texts))

  def _set(self, block, count):
    self._block = block  # ends of the texts, int64, then the texts
    self._ends = np.frombuffer(block, np.int64, count)

  def __len__(self):
    return len(self._ends)

  def _text(self, i):
    first = 8 * len(self._ends)
    return bytes(self._block[first + (self._ends[i - 1] if i else 0):first + self._ends[i]])

  def __getitem__(self, i):
    return json.loads(self._text(range(len(self))[i]))

  def digest(self):
    """Tells sequences of other rows apart: the SHA-256 of all of it as one JSON list."""
    digest = hashlib.sha256(b'[')
    for i in range(len(self)):
      digest.update((b', ' if i else b'') + self._text(i))
    digest.update(b']')
    return digest.hexdigest()

  def __getstate__(self):
    path = _keep(self._block)
    return {'count': len(self), 'path': path} | ({} if path else {'block': bytes(self._block)})

  def __setstate__(self, state):
    block = _map(state['path']) if state['path'] else state['block']
    self._set(block, state['count'])


def list_digest(rows):
  """Tells lists of recordings and of what is known of them apart; where they lie does not matter."""
  return Rows({k: v for k, v in row.items() if k != 'path'} for row in rows).digest()


def _keep(block):
  """The name of a file in the cache that holds `block`; None where none can be made."""
  folder = cache_folder('rows-1')
  if folder is None or not block:
    return None
  path = os.path.join(folder, hashlib.blake2b(block, digest_size=16).hexdigest())
  try:
    with open(path, 'rb') as file:
      if file.read() == block:
        return path
  except OSError:
    pass  # there is none yet
  try:
    write_whole(path, block)
  except UserError:
    return None
  return path


def _map(path):
  with open(path, 'rb') as file:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
