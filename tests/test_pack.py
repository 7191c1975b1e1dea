"""A packed corpus: clips, crops and splits of the one it was made of, however often that was stopped."""

import errno
import io
import json
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax.audio import read_audio, read_sound
from affectcodec_jax.common import retry, workers
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data import arrayrecord, pack, pipeline
from affectcodec_jax.data.arrayrecord import ArrayRecordSource
from affectcodec_jax.data.folder import FolderSource
from configs.base import get_config

RNG = np.random.default_rng(0)
SPLITS = ('train', 'valid', 'test')


def speech(seconds, rate, channels=1):
  """Noise below full scale whose level changes, `[samples, channels]`."""
  n = int(seconds * rate)
  return 0.2 * RNG.normal(size=(n, channels)).clip(-4, 4) * np.linspace(0.1, 1, n)[:, None]


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """A manifest of 13 recordings: numbers of several widths, rates and channels, long ones, damage."""
  folder = tmp_path_factory.mktemp('corpus')
  kinds = [('flac', 'PCM_16', 16000, 1), ('flac', 'PCM_24', 44100, 2), ('wav', 'PCM_16', 16000, 1),
           ('wav', 'PCM_24', 48000, 1), ('wav', 'PCM_U8', 8000, 1), ('aiff', 'PCM_S8', 11025, 1),
           ('wav', 'PCM_16', 22050, 6), ('flac', 'PCM_16', 16000, 1), ('wav', 'PCM_16', 16000, 2)]
  lines = []
  for i, (suffix, subtype, rate, channels) in enumerate([*kinds, *kinds[:4]]):
    path = folder / f'{i % 3}' / f'{i:02d}.{suffix}'
    path.parent.mkdir(exist_ok=True)
    seconds = 32.0 if i in (7, 8) else 0.5 + 0.1 * i
    soundfile.write(path, speech(seconds, rate, channels), rate, subtype)
    split = {9: 'valid', 10: 'test'}.get(i, 'train')
    lines.append({'path': f'{i % 3}/{path.name}', 'emotion': 'anger', 'text': f'Zażółć {i}', 'split': split,
                  'scale': 3, 'seconds': 99.0, 'lang': None})
  (folder / '0' / '99.flac').write_bytes((folder / '0' / '00.flac').read_bytes()[:60])
  for name in ('0/99.flac', 'absent.wav'):
    lines.insert(5, {'path': name, 'split': 'train'})
  manifest = folder / 'manifest.jsonl'
  manifest.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return manifest


@pytest.fixture(scope='module')
def packed(corpus, tmp_path_factory):
  """It in shards of four, made by two processes without a break."""
  out = tmp_path_factory.mktemp('packed') / 'out'
  assert cli.main(['pack', str(corpus), str(out), '--shard-files', '4', '--processes', '2']) == 0
  return out


@pytest.fixture
def here(monkeypatch):
  """Packs in this process: others take seconds to begin."""

  class Here:
    def __enter__(self):
      return self

    def __exit__(self, *exception):
      pass

  monkeypatch.setattr(workers, 'pool', lambda jobs: Here())
  monkeypatch.setattr(workers, 'in_order', lambda pool, work, items, ahead: ((x, work(x)) for x in items))


def same_items(source, other):
  assert len(source) == len(other) > 0
  for i in range(len(source)):
    item, expected = source[i], other[i]
    np.testing.assert_array_equal(item.pop('audio'), expected.pop('audio'))
    item.pop('name'), expected.pop('name')  # where it lies
    assert item == expected
    assert source.duration(i) == other.duration(i) and source.emotion(i) == other.emotion(i)


def test_it_has_the_items_of_the_corpus(packed, corpus, tmp_path, monkeypatch):
  """Bit for bit, in all splits, in the same order: their digest is the same too."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  for split in (*SPLITS, None):
    source, other = ArrayRecordSource(packed, split), FolderSource(corpus, split)
    assert source.digest() == other.digest()
    same_items(source, other)
  assert len(source) == 13
  same_items(pickle.loads(pickle.dumps(source)), other)
  sizes = [len(kind(path, min_seconds=0.75)) for kind, path in (
      (ArrayRecordSource, packed), (FolderSource, corpus))]
  assert sizes == [10, 10]


@pytest.mark.parametrize('workers', [0, 1])
def test_training_sees_the_same_crops(packed, corpus, workers):
  """Windows of the two long recordings, crops, gains and speeds, over more than an epoch.

  Of shards also by a reading process, which opens them itself.
  """
  data = get_config().data
  data.speed, data.equalise_db = 0.1, 3.0
  batches = {}
  for kind, path in (('folder', corpus), ('arrayrecord', packed)):
    data.source, data.path = kind, str(path)
    batches[kind] = pipeline.make_iterator(pipeline.make_source(data, 'train', 0), data, batch_size=5,
                                           crop_samples=6400, seed=3,
                                           num_workers=workers if kind == 'arrayrecord' else 0)
  for _ in range(4):
    a, b = (next(iterator) for iterator in batches.values())
    np.testing.assert_array_equal(a['audio'], b['audio'])
    np.testing.assert_array_equal(a['emotion'], b['emotion'])


def test_a_folder_is_split_by_its_names(tmp_path, here):
  for i in range(60):
    path = tmp_path / 'data' / f'{i % 4}' / f'{i}.flac'
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech(0.31, 8000), 8000)
  assert pack.pack(tmp_path / 'data', tmp_path / 'out', shard_files=25)['clips'] == 60
  for split in SPLITS:
    same_items(ArrayRecordSource(tmp_path / 'out', split), FolderSource(tmp_path / 'data', split))


def test_flac_is_kept_as_it_is_and_the_rest_at_its_rate(packed, corpus):
  rows, records = [], []
  for shard in range(4):
    path = arrayrecord.shard_path(packed, shard, 4)
    rows += arrayrecord.read_lines(path)[1:]
    reader = arrayrecord.open_shard(path)
    records += map(arrayrecord.read_record, reader.read_all())
  assert [row for row, _, _ in records] == rows and len(rows) == 13
  for row, flac, scale in records:
    original, info = corpus.parent / row['path'], soundfile.info(io.BytesIO(flac))
    before = soundfile.info(original)
    assert (info.format, info.samplerate, info.channels, info.frames, scale) == (
        'FLAC', before.samplerate, before.channels, before.frames, 1.0)
    if original.suffix == '.flac':
      assert flac == original.read_bytes()
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(flac))[0], soundfile.read(original)[0])
    assert (row['seconds'], row['speaker'], row['scale']) == (before.duration, original.parent.name, 3)


@pytest.mark.parametrize('suffix, subtype, peak', [
    ('wav', 'FLOAT', 0.5), ('wav', 'FLOAT', 5.0), ('wav', 'PCM_32', 0.9), ('ogg', 'VORBIS', 0.5),
    ('mp3', None, 0.5)])
def test_other_samples_are_rounded_to_24_bits(tmp_path, suffix, subtype, peak):
  """An error of half a step of 2^-23 of the power of two above the peak, and of float32's own."""
  path, x = tmp_path / f'a.{suffix}', speech(1.0, 16000, 2)
  soundfile.write(path, peak * x / np.abs(x).max(), 16000, subtype)
  flac, seconds, scale = pack.to_flac(path)
  expected = read_audio(path)
  audio = read_sound(io.BytesIO(flac), 'a') * np.float32(scale)
  assert np.abs(expected).max() <= scale <= max(1.0, 2 * np.abs(expected).max())
  np.testing.assert_allclose(audio, expected, rtol=0, atol=scale * 2 ** -23)
  assert seconds == FolderSource(path).duration(0)


def test_joined_files_are_kept_whole(tmp_path):
  for rates in ((16000, 16000), (16000, 8000)):
    parts = []
    for rate in rates:
      memory = io.BytesIO()
      soundfile.write(memory, speech(0.5, rate), rate, 'PCM_16', format='WAV')
      parts.append(memory.getvalue())
    (tmp_path / 'a.wav').write_bytes(b''.join(parts))
    flac, _, scale = pack.to_flac(tmp_path / 'a.wav')
    expected = read_audio(tmp_path / 'a.wav')
    np.testing.assert_allclose(read_sound(io.BytesIO(flac), 'a') * scale, expected, rtol=0, atol=2 ** -23)


def test_a_window_decodes_what_it_holds(packed, corpus, monkeypatch):
  source, other = ArrayRecordSource(packed), FolderSource(corpus)
  long = [i for i in range(len(source)) if source.duration(i) > 30]
  expected = [other.read(i, 21.3, 0.5)['audio'] for i in long]
  decoded, read = [], soundfile.SoundFile.read

  def count(self, *args, **kwargs):
    block = read(self, *args, **kwargs)
    decoded.append(len(block))
    return block

  monkeypatch.setattr(soundfile.SoundFile, 'read', count)
  for i, audio in zip(long, expected):
    np.testing.assert_array_equal(source.read(i, 21.3, 0.5)['audio'], audio)
    assert len(audio) == 8000
  assert sum(decoded) == 2 * 8000


# ---- Making it ----


def files(folder):
  return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_damage_is_left_out_and_said(packed, corpus, tmp_path, here, capsys):
  lines = [json.loads(line) for line in (packed / 'skipped.jsonl').read_text().splitlines()]
  assert [line['path'] for line in lines] == ['absent.wav', '0/99.flac']
  assert lines[0]['reason'] == 'no such file' and 'not a readable audio file' in lines[1]['reason']
  capsys.readouterr()
  assert cli.main(['pack', str(corpus), str(packed), '--shard-files', '4']) == 0  # all is there
  said = capsys.readouterr().out
  assert said.startswith(f'{packed}: 13 clips, 0.02 h, ') and said.endswith(
      ' MB in 4 shards; 2 left out, see skipped.jsonl\n') and said.count('\n') == 1


def test_a_stopped_run_goes_on_to_the_same_files(packed, corpus, tmp_path, here, monkeypatch, capsys):
  """Stopped in the middle of the third shard, with one of the others lost since and another cut short."""
  out = tmp_path / 'out'
  to_flac = pack.to_flac

  def stop(path):
    if pathlib.Path(path).name == '07.flac':
      raise KeyboardInterrupt
    return to_flac(path)

  monkeypatch.setattr(pack, 'to_flac', stop)
  with pytest.raises(KeyboardInterrupt):
    pack.pack(corpus, out, shard_files=4)
  made = files(out)
  assert sorted(made) == ['speech-00000-of-00004.arrayrecord', 'speech-00000-of-00004.jsonl',
                          'speech-00001-of-00004.arrayrecord', 'speech-00001-of-00004.jsonl', 'speech.json']
  with pytest.raises(UserError, match='speech-00002-of-00004.* run the same pack command again'):
    ArrayRecordSource(out)
  monkeypatch.setattr(pack, 'to_flac', to_flac)
  (out / '.speech-00002-of-00004.arrayrecord.123.tmp').write_bytes(b'of a killed run')
  (out / 'speech-00000-of-00004.arrayrecord').unlink()
  pack.pack(corpus, out, shard_files=4)
  assert '1 of 4 shards are finished, going on' in capsys.readouterr().out
  assert files(out) == files(packed)
  shard = out / 'speech-00001-of-00004.arrayrecord'
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(UserError, match='speech-00001-of-00004.arrayrecord: missing, unfinished or damaged'):
    ArrayRecordSource(out)
  pack.pack(corpus, out, shard_files=4)
  assert files(out) == files(packed)


def test_what_was_packed_otherwise_is_not_gone_on_with(packed, corpus, tmp_path, here):
  before = files(packed)
  for options in ({'shard_files': 5}, {'shard_files': 4, 'split': 'train'}):
    with pytest.raises(UserError, match='was packed otherwise'):
      pack.pack(corpus, packed, **options)
  assert files(packed) == before
  for message, options in (('--shard-files', {'shard_files': 0}), ('--processes', {'processes': 0}),
                           ("no row of split 'dev'", {'split': 'dev'})):
    with pytest.raises(UserError, match=message):
      pack.pack(corpus, tmp_path / 'out', **options)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='lists no audio file'):
    pack.pack(tmp_path / 'empty', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'empty' / 'a.wav').write_bytes(b'no audio')
  with pytest.raises(UserError, match='none of the 1 recordings could be read'):
    pack.pack(tmp_path / 'empty', tmp_path / 'out')
  with pytest.raises(UserError, match='give a folder that python -m affectcodec_jax pack made'):
    ArrayRecordSource(tmp_path / 'empty')


# ---- Damage and networks ----


def test_a_damaged_record_is_skipped_and_no_other(packed, tmp_path, caplog):
  shutil.copytree(packed, tmp_path / 'out')
  source = ArrayRecordSource(tmp_path / 'out')
  path = arrayrecord.shard_path(tmp_path / 'out', 0, 4)
  data = bytearray(path.read_bytes())
  second = data.find(b'fLaC', data.find(b'fLaC') + 4)
  data[second + 5000] ^= 0xff
  path.write_bytes(data)
  for _ in range(2):
    assert [source[i] is None for i in range(4)] == [False, True, False, False]
  assert source.skipped == 1 and len([m for m in caplog.messages if 'record 1' in m]) == 1


@pytest.mark.parametrize('damage', [
    lambda lines: lines[:-1], lambda lines: ['{'] + lines[1:], lambda lines: [],
    lambda lines: lines[:1] + ['{}'] * 4,
    lambda lines: [json.dumps({'clips': 4, 'bytes': '4', 'skipped': []})] + lines[1:]])
def test_damaged_lists_are_refused(packed, tmp_path, damage):
  shutil.copytree(packed, tmp_path / 'out')
  path = tmp_path / 'out' / 'speech-00000-of-00004.jsonl'
  path.write_text('\n'.join(damage(path.read_text().splitlines())))
  with pytest.raises(UserError, match='speech-00000-of-00004.arrayrecord: missing, unfinished or damaged'):
    ArrayRecordSource(tmp_path / 'out')


def test_a_shard_that_fails_twice_is_opened_again(packed, monkeypatch):
  monkeypatch.setattr(retry, 'PAUSES', (0, 0))
  source, opened = ArrayRecordSource(packed), []
  expected = source[0]['audio']
  source._readers.clear()

  class Failing:
    def read(self, records):
      raise RuntimeError(f'UNKNOWN: read() failed: {os.strerror(5)}; reading')

  original = arrayrecord.open_shard

  def open_shard(path):
    opened.append(path)
    return Failing() if len(opened) < 3 else original(path)

  monkeypatch.setattr(arrayrecord, 'open_shard', open_shard)
  np.testing.assert_array_equal(source[0]['audio'], expected)
  assert len(opened) == 3 and source.skipped == 0


def test_an_outage_is_not_a_damaged_file(tmp_path, monkeypatch):
  """What the network did not give is not left out of a shard: the run ends there, to go on later."""
  def fail(path):
    raise OSError(errno.EIO, 'Input/output error')
  monkeypatch.setattr(pack, 'to_flac', fail)
  monkeypatch.setattr(retry, 'PAUSES', ())
  with pytest.raises(UserError, match='a.wav: .*the same command goes on'):
    pack._pack_shard(tmp_path, 1, (0, [{'path': 'a.wav', 'key': 'a.wav'}]))
  assert not list(tmp_path.glob('*.jsonl'))
