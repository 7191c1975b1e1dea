"""Speech from files: a directory, a manifest in JSON lines, or one recording."""

import collections
import functools
import hashlib
import logging
import os
import pathlib

from affectcodec_jax.audio import read_audio
from affectcodec_jax.common import buckets
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import check_local, parse_json
from affectcodec_jax.common.labels import EMOTIONS, emotion_index
from affectcodec_jax.common.retry import with_retries
from affectcodec_jax.data.file_index import FileIndex
from affectcodec_jax.data.recordings import Recordings

SUFFIXES = ('.wav', '.flac', '.ogg', '.opus', '.mp3', '.m4a', '.aac', '.webm', '.amr',
            '.aif', '.aiff', '.au', '.caf', '.mka', '.w64', '.wma')

# Folders of systems, besides those whose names begin with a dot: what was thrown away, previews, metadata.
_OF_SYSTEMS = {'$recycle.bin', 'recycler', '#recycle', '@recycle', '@eadir', '__macosx', 'lost+found',
               'system volume information'}


class FolderSource(Recordings):
  """Random access to the usable files of one split.

  Args:
    path: a directory, searched to its depths but for what is hidden (the folder of a file is its speaker;
      links to folders elsewhere are followed), an audio file, the address of one of them in a bucket, or a
      `.jsonl` manifest: one object a line with `path` (relative to the manifest) and optionally `speaker`,
      `emotion`, `corpus`, `gender`, `lang`, `text` and `split`.
    split: which split, or None for all. Where no row names one, a hash of the path decides:
      90 % 'train', 5 % 'valid', 5 % 'test'. It stays so for a file when others come or go, except
      among so few files that a split would be empty; one or two files are in all splits.
    min_seconds: shorter files are skipped.

  Raises:
    UserError: nothing there, a malformed manifest, or no usable file in the split.
  """

  def __init__(self, path, split=None, min_seconds=0.3):
    rows = list_rows(path)
    self._root = _root(path)
    index = FileIndex(path, [row['path'] for row in rows])
    problems = {}  # by path, of the files that were looked at

    def usable(some):
      for row, (seconds, problem) in zip(some, index.seconds([row['path'] for row in some])):
        row['seconds'] = seconds or 0.0
        if seconds is not None and seconds < min_seconds:
          problem = f'{seconds:.2f} s is too short'
        problems[row['path']] = problem
      return [row for row in some if not problems[row['path']]]

    try:
      chosen = _choose(rows, split, usable, path)
    finally:
      index.save()
      bad = [f'{name} ({problem})' for name, problem in problems.items() if problem]
      if bad:
        logging.warning('skipped %d of %d files: %s%s', len(bad), len(problems), '; '.join(bad[:3]),
                        ' …' if len(bad) > 3 else '')
    if not chosen:
      raise UserError(f'{path}: no usable audio file; files must be {", ".join(SUFFIXES)} '
                      f'of {min_seconds} s or more')
    _warn_of_labels(chosen)
    super().__init__(({k: v for k, v in row.items() if k != 'path'} for row in chosen), len(bad))

  def _read(self, i, row, start, seconds):
    path = buckets.join(self._root, row['key'])
    return path, read_audio(path, start, seconds, pipes=False)


def _warn_of_labels(rows):
  """Says which emotions of a manifest are none that the codec knows."""
  named = collections.Counter(str(row['emotion']) for row in rows if row.get('emotion'))
  unknown = collections.Counter({name: n for name, n in named.items() if emotion_index(name) < 0})
  if unknown:
    names = ', '.join(f"'{name}'" for name, _ in unknown.most_common(3))
    logging.warning('%d of %d files count as unlabelled: their emotion (%s%s) is none of %s',
                    unknown.total(), len(rows), names, ' …' if len(unknown) > 3 else '',
                    ', '.join(EMOTIONS))


def list_rows(path):
  """What a folder or manifest lists, unread: dicts with `path`, `key` (the path as listed) and labels.

  Raises:
    UserError: nothing there, an address that is not of a bucket, or a malformed manifest.
  """
  if not str(path):
    raise UserError('no data is named; give a folder of audio files or a .jsonl manifest')
  if buckets.is_address(path):
    return _list_bucket(str(path))
  check_local(path)
  path = pathlib.Path(path)
  if os.path.isdir(path):  # unlike Path.is_dir it knows names that are too long
    return _scan(path)
  if os.path.isfile(path) and path.suffix == '.jsonl':
    return _read_manifest(path, lambda: path.read_text('utf-8-sig'))
  if os.path.isfile(path) and path.suffix.lower() in SUFFIXES:
    return [{'path': str(path), 'speaker': '', 'key': path.name}]
  if os.path.exists(path):
    raise UserError(f'{path}: give an audio file, a folder of them or a .jsonl manifest')
  raise UserError(f'{path}: no such folder or manifest')


def _root(path):
  """The folder from which the files of a folder, manifest or audio file are named."""
  if buckets.is_address(path):
    return path.rpartition('/')[0] if _is_listed_file(path) else path
  return str(path if os.path.isdir(path) else pathlib.Path(path).parent)


def _is_listed_file(address):
  return address.lower().endswith(('.jsonl', *SUFFIXES))


def _list_bucket(address):
  """`list_rows` of a folder, manifest or audio file in a bucket."""
  buckets.check(address)
  if address.endswith('.jsonl'):
    return _read_manifest(address, lambda: buckets.read(address).decode('utf-8-sig'))
  if _is_listed_file(address):
    return [{'path': address, 'speaker': '', 'key': address.rpartition('/')[2]}]
  place = _placing(address)
  keys = [key for key in buckets.names(address) if key.lower().endswith(SUFFIXES)
          and not any(map(_left_out, key.split('/')))]
  if not keys:
    raise UserError(f'{address}: no audio file lies there')
  return [place(key) for key in sorted(keys, key=lambda key: key.split('/'))]


def list_split(path, split):
  """`list_rows` of one split, or of all where it is None.

  Raises:
    UserError: as `list_rows` and `select_rows`, or nothing is listed.
  """
  rows = list_rows(path)
  rows = rows if split is None else select_rows(rows, split, path)
  if not rows:
    raise UserError(f'{path}: lists no audio file')
  return rows


def _scan(root):
  place = _placing(root)
  return [place(key) for key in _names(root, SUFFIXES)]


def find_files(root, suffixes):
  """Paths of the files below a folder that end so, sorted; hidden ones and folders are left out.

  Links to folders elsewhere are followed, once each. `suffixes` is a tuple of them, in lower case.
  """
  return [pathlib.Path(root, name) for name in _names(root, suffixes)]


def _names(root, suffixes):
  keys, followed, waiting = [], [os.path.realpath(root)], ['']
  while waiting:
    folder = waiting.pop()
    try:
      entries = with_retries(_entries, os.path.join(root, folder))
    except OSError as e:
      logging.warning('%s: not looked into (%s)', e.filename, e.strerror)
      continue
    sounds = [e.name for e in entries if e.name.lower().endswith(suffixes) and _is_file(e)]
    inner = [e.name for e in entries if _is_folder(e) and _enters(e, followed)]
    keys += [folder + name for name in sounds]
    waiting += [f'{folder}{name}{os.sep}' for name in reversed(inner)]
  return sorted(keys, key=lambda key: key.split(os.sep))


def _entries(folder):
  with os.scandir(folder) as entries:
    return sorted((e for e in entries if not _left_out(e.name)), key=lambda e: e.name)


def _left_out(name):
  return name.startswith('.') or name.lower() in _OF_SYSTEMS


def _is_file(entry):
  return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _is_folder(entry):
  return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _enters(folder, followed):
  """Whether to scan a folder: not a link to what is scanned anyway, or holds all this."""
  if folder.is_symlink():
    real = os.path.realpath(folder.path)
    for other in followed:
      if os.path.commonpath([real, other]) in (real, other):
        return False
    followed.append(real)
  return True


def _placing(root):
  """A function of a file's name, as listed, to its row: `path`, `key` and `speaker`."""

  @functools.cache
  def of_folder(folder):
    return buckets.join(root, folder + 'x')[:-1], pathlib.PurePath(folder).name

  def place(key):
    cut = key.rfind('/') + 1
    path, speaker = of_folder(key[:cut])
    return {'path': path + key[cut:], 'speaker': speaker, 'key': key}

  return place


def _read_manifest(path, read):
  rows, place = [], _placing(_root(path))
  try:
    lines = with_retries(read).split('\n')  # splitlines() would cut at U+2028
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: cannot be read as UTF-8 text ({e})') from e
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = parse_json(line)
      placed = place(row['path'])
      row = {k: v for k, v in row.items() if v is not None}
      rows.append({'speaker': placed['speaker']} | row | {'path': placed['path'], 'key': row['path']})
    except (ValueError, TypeError, KeyError, AttributeError) as e:
      raise UserError(f'{path}, line {number}: expected a JSON object with "path" '
                      f'({type(e).__name__}: {e})') from e
  return rows


def _choose(rows, split, usable, path):
  """Usable rows of a split; of other splits no more files are opened than show that it is not theirs.

  `usable` is a function of rows to those of them that can be read.
  """
  if split is not None and any('split' in row for row in rows):
    chosen = usable([row for row in rows if row.get('split') == split])
    if chosen:
      return chosen
  elif split is not None:
    parts = _by_name(rows)
    # With one usable file in each, no split has to borrow from another (`select_rows`).
    if split in parts and all(any(usable([row]) for row in part) for part in parts.values()):
      return usable(parts[split])
  rows = usable(rows)
  return select_rows(rows, split, path) if rows and split is not None else rows


def select_rows(rows, split, path):
  """Rows of one split; by hash of the path where no row names its split. `path` begins the errors.

  Raises:
    UserError: there are none.
  """
  if not any('split' in row for row in rows):
    if len(rows) < 3:
      if split != 'train':
        logging.warning("%s: too few files to hold any out; split '%s' is that of training", path, split)
      return rows
    parts = _by_name(rows)
    if not all(parts.values()):  # so few that one would be empty
      order = sorted(rows, key=_hash)
      valid, test = max(len(parts['valid']), 1), max(len(parts['test']), 1)
      valid, test = (valid, test) if valid + test < len(rows) else (1, 1)
      parts = {'valid': order[:valid], 'test': order[valid:valid + test], 'train': order[valid + test:]}
    if not parts.get(split):
      names = [name for name in sorted(parts) if parts[name]]
      raise UserError(f"{path}: no files in split '{split}'; it has {', '.join(names)}")
    return sorted(parts[split], key=lambda row: row['key'])
  chosen = [row for row in rows if row.get('split') == split]
  if not chosen:
    names = sorted({str(row.get('split')) for row in rows})
    raise UserError(f"{path}: no row of split '{split}'; it has {', '.join(names)}")
  return chosen


def _by_name(rows):
  """{split: its rows in the order of their names}, by the hash of each name."""
  parts = {'test': [], 'train': [], 'valid': []}
  for row in sorted(rows, key=lambda row: row['key']):
    number = _hash(row)
    parts['valid' if number < 0.05 else 'test' if number < 0.1 else 'train'].append(row)
  return parts


def _hash(row):
  """A number in [0, 1) that depends on the file's name alone."""
  name = row['key'].encode('utf-8', 'surrogatepass')  # names need not be UTF-8
  return int.from_bytes(hashlib.sha256(name).digest()[:6], 'big') / 2 ** 48
