"""Lengths of a corpus's files, kept in the user's cache: no header is read twice.

An index is a line with the SHA-256 of what follows, and JSON: size, time of modification and seconds of
each file by its path. Files whose headers cannot be read are not in it, so they are tried again.
"""

from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import os
import time

from affectcodec_jax.common import buckets
from affectcodec_jax.common.audio_reader import duration
from affectcodec_jax.common.errors import UserError, describe
from affectcodec_jax.common.files import parse_json, write_whole
from affectcodec_jax.common.open_sound import open_sound
from affectcodec_jax.common.places import cache_folder
from affectcodec_jax.common.retry import with_retries

_FEWEST = 200  # files an index is kept for; fewer are looked at in a moment
_THREADS = 16  # they wait for disks and networks
_PART = 256  # files a thread takes at once
_SETTLED = 2e9  # nanoseconds after which a file that changes again has another time, on any file system


class FileIndex:
  """Seconds of the files that a folder or manifest lists.

  Args:
    corpus: the folder or manifest, by which the index is named.
    paths: of all its files; what an older index knows of others is dropped.
  """

  def __init__(self, corpus, paths):
    self._listed, self._place = set(paths), _place(corpus) if len(paths) >= _FEWEST else None
    self._known = _load(self._place)  # path to [bytes, nanoseconds, seconds]
    self._changed = not self._known.keys() <= self._listed

  def seconds(self, paths):
    """[(seconds, or None; what is wrong where it is None)] of files, by their headers or the index."""
    now = time.time_ns()
    with ThreadPoolExecutor(_THREADS) as pool:
      parts = [paths[i:i + _PART] for i in range(0, len(paths), _PART)]
      stats = [stat for part in pool.map(_stats, parts) for stat in part]
      new = [path for path, stat in zip(paths, stats) if self._known.get(path, [])[:2] != stat]
      parts = [new[i:i + _PART] for i in range(0, len(new), _PART)]
      read = dict(zip(new, (found for part in pool.map(_headers, parts) for found in part)))
    for path, stat in zip(paths, stats):
      if path in read:
        self._known.pop(path, None)
        if stat and read[path][0] is not None and now - stat[1] > _SETTLED:
          self._known[path] = [*stat, read[path][0]]
          self._changed = True
    return [read[path] if path in read else (self._known[path][2], '') for path in paths]

  def save(self):
    """Keeps what is known for the next time, where there is a cache to keep it in."""
    if self._place is None or not self._changed:
      return
    body = json.dumps({path: self._known[path] for path in self._known if path in self._listed}).encode()
    try:
      write_whole(self._place, hashlib.sha256(body).hexdigest().encode() + b'\n' + body)
    except UserError:
      pass  # a full disk: headers are read again


def _place(corpus):
  folder = cache_folder('files-1')
  corpus = corpus if buckets.is_address(corpus) else os.path.realpath(corpus)
  name = hashlib.blake2b(os.fsencode(corpus), digest_size=16).hexdigest()
  return folder and os.path.join(folder, f'{name}.json')


def _load(place):
  """What an index holds; nothing where there is none, or where it is damaged."""
  try:
    with open(place or os.devnull, 'rb') as file:
      digest, _, body = file.read().partition(b'\n')
    return parse_json(body) if hashlib.sha256(body).hexdigest().encode() == digest else {}
  except (OSError, ValueError):
    return {}


def _stats(paths):
  """[[bytes, nanoseconds], or None where there is no file to be seen] of files."""
  found = []
  for path in paths:
    try:
      found.append(with_retries(_stat, path))
    except (OSError, ValueError):  # ValueError: a name with a zero byte in it
      found.append(None)
  return found


def _stat(path):
  if buckets.is_address(path):
    return buckets.size_and_time(path)
  stat = os.stat(path)
  return [stat.st_size, stat.st_mtime_ns]


def _headers(paths):
  return [_header(path) for path in paths]


def _header(path):
  """(seconds, ''), or (None, what is wrong), of one file."""
  try:
    return with_retries(_duration, path), ''
  except UserError as e:
    return None, describe(e, path)


def _duration(path):
  with open_sound(path, pipes=False) as file:
    return duration(file, path)
