"""Corpora of many files: what is read at the start, what is kept, and that it changes nothing."""

import errno
import hashlib
import io
import json
import os
import pathlib
import pickle
import random
import types

import numpy as np
import pytest
import soundfile

from affectcodec_jax.common import files, open_sound, retry
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data import file_index, folder, pack
from affectcodec_jax.data.arrayrecord import ArrayRecordSource
from affectcodec_jax.data.folder import FolderSource
from affectcodec_jax.data.rows import Rows

SPLITS = ('train', 'valid', 'test')
LONG_AGO = 1_000_000_000  # a time of modification: files of the last two seconds are not kept


def tone(path, seconds=0.4, rate=16000, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, 0.3 * np.sin(np.arange(int(seconds * rate)) * 0.2), rate, **kwargs)
  os.utime(path, (LONG_AGO, LONG_AGO))
  return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The cache folder of indices, which are kept for folders of any size."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(file_index, '_FEWEST', 0)
  return tmp_path / 'cache' / 'affectcodec_jax' / 'files-1'


@pytest.fixture
def opened(monkeypatch):
  """Names of the files whose headers were read."""
  names, original = [], file_index._header

  def header(path):
    names.append(os.path.basename(path))
    return original(path)

  monkeypatch.setattr(file_index, '_header', header)
  return names


def contents(source):
  """All that a source knows without reading audio, in order."""
  return [source._rows[i] for i in range(len(source))]


# ---- Splits ----


def reference(rows, split, damaged):
  """A split as documented: every header is read first, then names decide."""
  rows = [row for row in rows if row['key'] not in damaged]
  if any('split' in row for row in rows):
    return [row['key'] for row in rows if row.get('split') == split]
  number = lambda key: int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], 'big') / 2 ** 48
  keys = sorted((row['key'] for row in rows), key=number)
  if len(keys) < 3:  # too few: all of them, as they are listed
    return [row['key'] for row in rows]
  valid = max(sum(number(key) < 0.05 for key in keys), 1)
  test = max(sum(0.05 <= number(key) < 0.1 for key in keys), 1)
  if valid + test >= len(keys):
    valid, test = 1, 1
  parts = {'valid': keys[:valid], 'test': keys[valid:valid + test], 'train': keys[valid + test:]}
  return sorted(parts[split])


@pytest.mark.parametrize('named', [False, True])
def test_splits_are_those_of_all_headers_read_first(named):
  """Corpora of 1 to 120 names, of which none to nearly all are damaged."""
  rng = random.Random(0)
  for count in [1, 2, 3, 4, 5, 8, 20, 50, 120] * 8:
    rows = [{'key': f'{rng.random()}.wav', 'path': str(i)} for i in range(count)]
    for row in rows:
      if named and rng.random() < 0.5:
        row['split'] = rng.choice(SPLITS)
    damaged = {row['key'] for row in rows if rng.random() < rng.choice([0.0, 0.1, 0.9])}

    def usable(some, damaged=damaged):
      return [row for row in some if row['key'] not in damaged]

    for split in SPLITS:
      expected = reference(rows, split, damaged)
      if expected or not usable(rows):
        assert [row['key'] for row in folder._choose(rows, split, usable, 'here')] == expected
      else:
        with pytest.raises(UserError, match=f"here: no .* split '{split}'"):
          folder._choose(rows, split, usable, 'here')


@pytest.mark.parametrize('manifest', [False, True])
def test_headers_of_other_splits_are_not_read(tmp_path, opened, manifest):
  for i in range(100):
    tone(tmp_path / f'{i}.wav')
  path = tmp_path
  if manifest:
    path = tmp_path / 'm.jsonl'
    path.write_text(''.join(json.dumps({'path': f'{i}.wav', 'split': SPLITS[i % 20 % 3]}) + '\n'
                            for i in range(100)))
  for split in ('valid', 'test'):
    opened.clear()
    source = FolderSource(path, split)
    # Without names of splits: the files themselves, and one of each split that shows it has any.
    assert len(set(opened)) == len(source) + (0 if manifest else 2) < 50


# ---- The index ----


def corpus(path, count=12):
  for i in range(count):
    tone(path / f'{i % 3}' / f'{i:02d}.flac', 0.4 + 0.01 * i)
  (path / 'bad.wav').write_text('not audio')
  return path


def test_a_second_start_reads_headers_of_damaged_files_alone(tmp_path, cache, opened):
  data = corpus(tmp_path / 'data')
  first = FolderSource(data)
  assert sorted(opened) == sorted(p.name for p in data.rglob('*.*')) and first.skipped == 1
  opened.clear()
  second = FolderSource(data)
  assert opened == ['bad.wav'] and second.skipped == 1
  assert contents(second) == contents(first) and second.digest() == first.digest()
  assert [row['seconds'] for row in contents(first)] == [
      soundfile.info(data / row['key']).duration for row in contents(first)]
  for split in SPLITS:  # splits share an index
    FolderSource(data, split)
  assert set(opened) == {'bad.wav'} and len(list(cache.iterdir())) == 1


def test_changed_added_and_removed_files_are_noticed(tmp_path, cache, opened):
  data = corpus(tmp_path / 'data')
  FolderSource(data)
  same_size, same_time, later = data / '0' / '00.flac', data / '1' / '01.flac', data / '2' / '02.flac'
  before = same_size.read_bytes()
  tone(same_time, 1.5)  # another size, at the old time
  tone(same_size, 0.4, rate=8000)
  same_size.write_bytes(same_size.read_bytes()[:len(before)].ljust(len(before), b'\0'))
  os.utime(same_size, (LONG_AGO + 1, LONG_AGO + 1))
  os.utime(later, (LONG_AGO + 1, LONG_AGO + 1))
  tone(data / 'new.flac', 0.7)
  (data / '0' / '03.flac').unlink()
  opened.clear()
  source = FolderSource(data)
  assert sorted(opened) == ['00.flac', '01.flac', '02.flac', 'bad.wav', 'new.flac']
  seconds = {pathlib.Path(row['key']).name: row['seconds'] for row in contents(source)}
  assert '03.flac' not in seconds and len(seconds) == 12
  assert (seconds['00.flac'], seconds['01.flac'], seconds['new.flac']) == (0.4, 1.5, 0.7)
  index, = cache.iterdir()
  assert b'03.flac' not in index.read_bytes() and b'new.flac' in index.read_bytes()


def test_a_file_written_this_moment_is_not_trusted_yet(tmp_path, cache, opened):
  """Written again at once, it may have the same size and, by a coarse clock, the same time."""
  os.utime(tone(tmp_path / 'data' / 'a.wav'))
  for _ in range(2):
    FolderSource(tmp_path / 'data')
  assert opened == ['a.wav', 'a.wav']


@pytest.mark.parametrize('damage', [
    lambda data: b'', lambda data: data[:-1], lambda data: data[:40], lambda data: b'{}',
    lambda data: data.replace(b'0.4', b'9.4', 1), lambda data: data + b' ', lambda data: b'\xff' * 100,
    lambda data: b'[' * 100_000])
def test_a_damaged_index_is_made_anew(tmp_path, cache, opened, damage):
  data = corpus(tmp_path / 'data', 3)
  expected = contents(FolderSource(data))
  index, = cache.iterdir()
  good = index.read_bytes()
  assert damage(good) != good
  index.write_bytes(damage(good))
  opened.clear()
  assert contents(FolderSource(data)) == expected and len(opened) == 4
  assert index.read_bytes() == good


def test_without_a_cache_all_is_as_with_one(tmp_path, cache, opened, monkeypatch):
  data = corpus(tmp_path / 'data')
  expected = FolderSource(data, 'train')
  monkeypatch.setenv('XDG_CACHE_HOME', '/dev/null/none')
  opened.clear()
  source = FolderSource(data, 'train')
  assert contents(source) == contents(expected) and len(opened) >= len(source)
  assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_an_index_that_cannot_be_written_is_no_obstacle(tmp_path, cache, monkeypatch):
  def full(path, data):
    raise UserError(f'{path}: cannot be written ({os.strerror(errno.ENOSPC)})')

  monkeypatch.setattr(file_index, 'write_whole', full)
  assert len(FolderSource(corpus(tmp_path / 'data'))) == 12 and not list(cache.iterdir())


# ---- Workers ----


def test_a_pickled_source_holds_no_list(tmp_path, cache):
  """What grain sends to each worker process has the same items, and a size that is not the list's."""
  sizes = {}
  for count in (5, 40):
    data = corpus(tmp_path / str(count), count)
    source = FolderSource(data)
    pickled = pickle.dumps(source)
    sizes[count] = len(pickled)
    copy = pickle.loads(pickled)
    assert contents(copy) == contents(source) and copy.digest() == source.digest()
    np.testing.assert_array_equal(copy[3]['audio'], source[3]['audio'])
    assert {k: v for k, v in copy[3].items() if k != 'audio'} == {
        k: v for k, v in source[3].items() if k != 'audio'}
  assert abs(sizes[5] - sizes[40]) <= 2 and len(pickle.dumps(copy)) == sizes[40]


def test_rows_come_back_as_they_went_in(tmp_path, cache):
  rows = [{'key': 'caf\udce9', 'seconds': 0.1 + 0.2}, {}, {'text': 'Zażółć', 'words': [['a', 1, None]]}]
  kept = Rows(rows)
  assert list(kept) == rows and kept[-1] == rows[-1] and len(kept) == 3
  # The value that runs of older versions have in their data.json.
  assert kept.digest() == hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
  pickled = pickle.dumps(kept)
  assert list(pickle.loads(pickled)) == rows
  file, = (tmp_path / 'cache' / 'affectcodec_jax' / 'rows-1').iterdir()
  file.write_bytes(b'damaged')  # made anew when the next process is sent to it
  assert list(pickle.loads(pickle.dumps(kept))) == rows
  assert list(pickle.loads(pickle.dumps(Rows([])))) == []


# ---- Networks ----


@pytest.mark.parametrize('read', [
    FolderSource, folder.list_rows, ArrayRecordSource, lambda path: pack.pack(path, 'out'),
    lambda path: pack.pack('here.jsonl', path), files.make_folder])
def test_addresses_elsewhere_are_no_names_of_folders(tmp_path, monkeypatch, read):
  """They were: a folder `s3:` was made, or `s3:/bucket` was not found."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'here.jsonl').write_text('{"path": "a.wav"}')
  with pytest.raises(UserError, match='s3://bucket/speech: .* mount the bucket'):
    read('s3://bucket/speech')
  assert [p.name for p in tmp_path.iterdir()] == ['here.jsonl']


@pytest.fixture
def network(monkeypatch):
  """Files of a network: of `failures` the next is raised at the next read, or `open`, and so on."""
  monkeypatch.setattr(retry, 'PAUSES', (0, 0, 0))
  state = types.SimpleNamespace(failures=[], at='read', tries=0)

  def fail():
    if state.failures:
      state.tries += 1
      number = state.failures.pop()
      raise OSError(number, os.strerror(number))

  class File(io.FileIO):
    def read(self, size=-1):
      if state.at == 'read' and self.tell() > 2000:  # in the middle of it
        fail()
      return super().read(size)

    def readinto(self, buffer):
      if state.at == 'read' and self.tell() > 2000:
        fail()
      return super().readinto(buffer)

  def opened(path, mode, buffering):
    if state.at == 'open':
      fail()
    return File(path, mode)

  monkeypatch.setattr(open_sound, 'open', opened, raising=False)
  return state


@pytest.mark.parametrize('at', ['open', 'read'])
@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg', 'mp3'])
def test_what_fails_twice_is_read_at_the_third_try(tmp_path, network, caplog, at, suffix):
  source = FolderSource(tone(tmp_path / f'a.{suffix}', 2.0))
  expected = source[0]['audio']
  caplog.clear()
  network.at, network.failures = at, [errno.EIO, errno.ESTALE]
  np.testing.assert_array_equal(source[0]['audio'], expected)
  assert network.tries == 2 and source.skipped == 0 and not [m for m in caplog.messages if 'skipped' in m]


def test_headers_are_read_again_too(tmp_path, network, caplog):
  tone(tmp_path / 'a.wav')
  network.at, network.failures = 'open', [errno.EIO] * 3
  assert len(FolderSource(tmp_path)) == 1 and network.tries == 3 and not caplog.messages


def test_what_goes_on_failing_is_skipped_in_the_end(tmp_path, network, caplog):
  source = FolderSource(tone(tmp_path / 'a.wav', 2.0))
  network.failures = [errno.EIO] * 4
  assert source[0] is None and network.tries == 4 and source.skipped == 1
  assert f'a.wav: cannot be read ({os.strerror(errno.EIO)})' in caplog.messages[-1]
  assert source[0] is not None  # it is back


@pytest.mark.parametrize('number', [errno.EACCES, errno.ENOENT, errno.EISDIR])
def test_lasting_errors_are_not_tried_again(tmp_path, network, number):
  source = FolderSource(tone(tmp_path / 'a.wav'))
  network.at, network.failures = 'open', [number] * 2
  assert source[0] is None and network.tries == 1


def test_damage_is_not_tried_again(tmp_path, network, monkeypatch):
  path = tone(tmp_path / 'a.wav')
  source = FolderSource(path)
  path.write_bytes(b'gone')
  monkeypatch.setattr(retry.time, 'sleep', lambda seconds: pytest.fail('tried again'))
  assert source[0] is None
