"""Speech from files: a directory, a manifest in JSON lines, or one recording."""

import hashlib
import json
import logging
import os
import pathlib

from affectcodec_jax.audio import read_audio
from affectcodec_jax.common.audio_reader import duration, open_sound
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import parse_json
from affectcodec_jax.common.labels import emotion_index

SUFFIXES = ('.wav', '.flac', '.ogg', '.opus', '.mp3', '.m4a', '.aac', '.webm', '.amr')


class FolderSource:
  """Random access to the usable files of one split.

  Items are `{'audio': float32 [samples] at 16 kHz, 'emotion': int, 'speaker': str, 'corpus': str,
  'gender': str, 'lang': str, 'text': str, 'name': str}`; what is not known is ''.

  Args:
    path: a directory, searched to its depths but for what is hidden (the folder of a file is its speaker;
      links to folders elsewhere are followed), an audio file, or a
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
    self._rows, self.skipped, self._unreadable = [], 0, set()
    bad = []
    for row in rows:
      problem, row['seconds'] = _check(row['path'], min_seconds)
      if problem:
        bad.append(f'{row["path"]} ({problem})')
      else:
        self._rows.append(row)
    if bad:
      self.skipped = len(bad)
      logging.warning('skipped %d of %d files: %s%s', len(bad), len(rows), '; '.join(bad[:3]),
                      ' …' if len(bad) > 3 else '')
    if not self._rows:
      raise UserError(f'{path}: no usable audio file; files must be {", ".join(SUFFIXES)} '
                      f'of {min_seconds} s or more')
    if split is not None:  # of the usable files, so that damaged ones cannot empty a split
      self._rows = select_rows(self._rows, split, path)

  def __len__(self):
    return len(self._rows)

  def duration(self, i):
    """Seconds of item `i`, from its header."""
    return self._rows[i]['seconds']

  def emotion(self, i):
    """Index of item `i`'s emotion (see `common.labels`), -1 where unknown, without reading its audio."""
    return emotion_index(self._rows[i].get('emotion'))

  def digest(self):
    """Tells sets of other files, lengths or labels apart; where they lie does not matter."""
    known = [{k: v for k, v in row.items() if k != 'path'} for row in self._rows]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

  def read(self, i, start=0.0, seconds=None):
    """A part of item `i`; None where the file does not decode, with a warning the first time."""
    row = self._rows[i]
    try:
      audio = _read_from(row['path'], start, seconds)
    except UserError as e:
      if i not in self._unreadable:
        self._unreadable.add(i)
        self.skipped += 1
        logging.warning('skipped (%d so far): %s', self.skipped, e)
      return None
    return {'audio': audio, 'emotion': self.emotion(i), 'name': str(row['path'])} | {
        k: str(row.get(k, '')) for k in ('speaker', 'corpus', 'gender', 'lang', 'text')}

  def __getitem__(self, i):
    return self.read(int(i))


def list_rows(path):
  """What a folder or manifest lists, unread: dicts with `path`, `key` (the path as listed) and labels.

  Raises:
    UserError: nothing there, or a malformed manifest.
  """
  if not str(path):
    raise UserError('no data is named; give a folder of audio files or a .jsonl manifest')
  path = pathlib.Path(path)
  if path.is_dir():
    return _scan(path)
  if path.is_file() and path.suffix == '.jsonl':
    return _read_manifest(path)
  if path.is_file() and path.suffix.lower() in SUFFIXES:
    return [{'path': path, 'speaker': '', 'key': path.name}]
  if path.exists():
    raise UserError(f'{path}: give an audio file, a folder of them or a .jsonl manifest')
  raise UserError(f'{path}: no such folder or manifest')


def _read_from(path, start, seconds):
  try:
    return read_audio(path, start, seconds, pipes=False)
  except UserError:
    if not start:
      raise
    return read_audio(path, 0.0, seconds, pipes=False)  # it is shorter than its header says


def _scan(root):
  files = find_files(root, SUFFIXES)
  keys = [p.relative_to(root) for p in files]
  return [{'path': p, 'speaker': key.parent.name, 'key': str(key)} for p, key in zip(files, keys)]


def find_files(root, suffixes):
  """Paths of the files below a folder that end so, sorted; hidden ones and folders are left out.

  Links to folders elsewhere are followed, once each.
  """
  files, followed = [], [os.path.realpath(root)]
  for folder, folders, names in os.walk(root, followlinks=True, onerror=_unscanned):
    folders[:] = [name for name in sorted(folders) if _enters(os.path.join(folder, name), followed)]
    files += [pathlib.Path(folder, name) for name in names if not name.startswith('.')]  # macOS: ._a.wav
  return sorted(p for p in files if p.suffix.lower() in suffixes and p.is_file())


def _enters(folder, followed):
  """Whether to scan a folder: not a hidden one, nor a link to what is scanned anyway, or holds all this."""
  if os.path.basename(folder).startswith('.'):
    return False
  if os.path.islink(folder):
    real = os.path.realpath(folder)
    for other in followed:
      if os.path.commonpath([real, other]) in (real, other):
        return False
    followed.append(real)
  return True


def _unscanned(error):
  logging.warning('%s: not looked into (%s)', error.filename, error.strerror)


def _read_manifest(path):
  rows = []
  try:
    lines = path.read_text(encoding='utf-8-sig').split('\n')  # splitlines() would cut at U+2028
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: cannot be read as UTF-8 text ({e})') from e
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = parse_json(line)
      audio = path.parent / row['path']
      row = {k: v for k, v in row.items() if v is not None}
      speaker = pathlib.PurePath(row['path']).parent.name  # as listed, wherever the manifest lies
      rows.append({'speaker': speaker} | row | {'path': audio, 'key': row['path']})
    except (ValueError, TypeError, KeyError) as e:
      raise UserError(f'{path}, line {number}: expected a JSON object with "path" '
                      f'({type(e).__name__}: {e})') from e
  return rows


def select_rows(rows, split, path):
  """Rows of one split; by hash of the path where no row names its split. `path` begins the errors.

  Raises:
    UserError: there are none.
  """
  if not any('split' in row for row in rows):
    order = sorted(rows, key=_hash)
    valid = sum(_hash(row) < 0.05 for row in rows)
    test = sum(0.05 <= _hash(row) < 0.1 for row in rows)
    if len(rows) < 3:
      if split != 'train':
        logging.warning("%s: too few files to hold any out; split '%s' is that of training", path, split)
      return rows
    valid, test = max(valid, 1), max(test, 1)
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


def _hash(row):
  """A number in [0, 1) that depends on the file's name alone."""
  name = row['key'].encode('utf-8', 'surrogatepass')  # names need not be UTF-8
  return int.from_bytes(hashlib.sha256(name).digest()[:6], 'big') / 2 ** 48


def _check(path, min_seconds):
  """(what is wrong or None, seconds) from the header alone."""
  try:
    with open_sound(path, pipes=False) as file:
      seconds = duration(file, path)
  except UserError as e:
    return str(e).removeprefix(f'{path}: ').split('; give')[0], 0.0
  return (f'{seconds:.2f} s is too short' if seconds < min_seconds else None), seconds
