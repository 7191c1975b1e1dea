"""Speech packed into ArrayRecord shards by `python -m affectcodec_jax pack SPEECH OUT`.

OUT holds `speech.json` (settings) and of each shard `speech-00000-of-00282.arrayrecord` and, under the
same name, `.jsonl`: a line `{"clips": …, "bytes": …, "skipped": […]}`, then one a record, in order, as in a
manifest (`path`, `seconds`, `speaker` and what else is known). A shard is finished when that is there.
A record (`common.records`) is `{"row": its line, "scale": what its samples are to be multiplied by}` and
a FLAC file.
"""

from concurrent.futures import ThreadPoolExecutor
import io
import logging
import os
import pathlib

import numpy as np

from affectcodec_jax.audio import read_sound
from affectcodec_jax.common import buckets, records, schemas
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import check_local, parse_json
from affectcodec_jax.common.joined import Part
from affectcodec_jax.common.retry import named, with_retries
from affectcodec_jax.data.folder import select_rows
from affectcodec_jax.data.recordings import Recordings

SETTINGS = 'speech.json'
_AT = 0  # a key that no row has, because those of JSON are text
_ADVICE = 'give a folder that python -m affectcodec_jax pack made'


class ArrayRecordSource(Recordings):
  """Random access to the recordings of one split of a packed corpus.

  They are those, in the order, that `folder.FolderSource` has of the corpus before it was packed.

  Args:
    path: the folder that `pack` made.
    split: which split, or None for all, as of a folder.
    min_seconds: shorter recordings are skipped.

  Raises:
    UserError: not such a folder, not finished, damaged, or nothing in the split.
  """

  def __init__(self, path, split=None, min_seconds=0.3):
    self._folder, self._readers = pathlib.Path(path), {}
    self._shards = read_settings(path)['shards']
    with ThreadPoolExecutor(16) as pool:  # they wait for disks and networks
      parts = list(pool.map(self._finished, range(self._shards)))
    rows = [row | {_AT: (shard, record)} for shard, part in enumerate(parts)
            for record, row in enumerate(part)]
    usable = [row for row in rows if row['seconds'] >= min_seconds]
    skipped = len(rows) - len(usable)
    if skipped:
      logging.warning('skipped %d of %d recordings: shorter than %s s', skipped, len(rows), min_seconds)
    if not usable:
      raise UserError(f'{path}: no recording of {min_seconds} s or more')
    chosen = usable if split is None else select_rows(usable, split, path)
    self._at = np.array([row[_AT] for row in chosen], np.int32)  # [items, 2]: shard, record of it
    super().__init__(({k: v for k, v in row.items() if k != _AT} for row in chosen), skipped)

  def __getstate__(self):
    return self.__dict__ | {'_readers': {}}  # each process opens its own

  def _finished(self, shard):
    """Rows of a shard, which has to be there."""
    name = shard_path(self._folder, shard, self._shards)
    lines = with_retries(read_lines, name)
    if lines is None or with_retries(_size, name) != lines[0]['bytes']:
      raise UserError(f'{name}: missing, unfinished or damaged; run the same pack command again')
    return [{'key': row.pop('path')} | row for row in lines[1:]]

  def _read(self, i, row, start, seconds):
    shard, record = (int(n) for n in self._at[i])
    path = shard_path(self._folder, shard, self._shards)
    name = str(pathlib.Path(self._folder, row['key']))
    try:
      if shard not in self._readers:
        self._readers[shard] = open_shard(path)
      _, flac, scale = read_record(self._readers[shard].read([record])[0])
    except (RuntimeError, UserError) as e:  # array_record reports all as the former
      self._readers.pop(shard, None)  # which stays as it is after an error
      raise UserError(f'{path}, record {record}: {" ".join(str(e).split())}') from named(e)
    audio = read_sound(Part(io.BytesIO(flac), 0, len(flac)), name, start, seconds)
    return name, audio * np.float32(scale)


def read_settings(folder):
  """What `speech.json` says.

  Raises:
    UserError: not there or not readable.
  """
  if buckets.is_address(folder):  # the reader waits there for ever
    raise UserError(f'{folder}: shards are read from a disk; copy them to one of this machine '
                    '(gcloud storage cp -r), or train from the files themselves by data.source=folder')
  check_local(folder)
  return schemas.read(pathlib.Path(folder) / SETTINGS, schemas.Speech, _ADVICE)


def shard_path(folder, shard, shards):
  """The path of shard number `shard` of `shards`."""
  return pathlib.Path(folder) / f'speech-{shard:05d}-of-{shards:05d}.arrayrecord'


def lines_path(path):
  """The path of what is known of a shard's records."""
  return path.with_suffix('.jsonl')


def read_lines(path):
  """[what a shard holds, row of each record] of a finished shard; None where it is not, or damaged."""
  try:
    lines = [parse_json(line) for line in lines_path(path).read_bytes().splitlines()]
    whole = (len(lines) == 1 + lines[0]['clips'] and isinstance(lines[0]['bytes'], int)
             and isinstance(lines[0]['skipped'], list)
             and all(isinstance(row['path'], str) and row['seconds'] >= 0 for row in lines[1:]))
    return lines if whole else None
  except (FileNotFoundError, ValueError, TypeError, KeyError, IndexError):
    return None


def _size(path):
  try:
    return os.stat(path).st_size
  except FileNotFoundError:
    return None


def open_shard(path):
  """A reader for single records; `read([number])` gives a list of one."""
  from array_record.python.array_record_module import ArrayRecordReader
  return ArrayRecordReader(str(path), options='readahead_buffer_size:0', file_reader_buffer_size=32768)


def write_record(row, flac, scale):
  """A record of what is known of a recording, its FLAC file, and what multiplies that one's samples."""
  return records.join({'row': row, 'scale': scale}, flac)


def read_record(data):
  """(what is known, bytes of a FLAC file, what multiplies its samples) of a record.

  Raises:
    UserError: not such a record, or damaged.
  """
  try:
    about, flac = records.split(data)
    return about['row'], flac, float(about['scale'])
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f'not a record of speech ({type(e).__name__}: {e}); {_ADVICE}') from e
