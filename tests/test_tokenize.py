"""A corpus to token shards: the same files however often it was stopped, and no recording in the way."""

import dataclasses
import errno
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc

import numpy as np
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax import load
from affectcodec_jax.audio import read_audio
from affectcodec_jax.common import files, retry
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import write_json
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.tokens import afc
from affectcodec_jax.tokens import corpus as tokenize_corpus
from affectcodec_jax.tokens import shards as token_shards

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def run(untrained):
  """The folder of a 3-stage codec."""
  return untrained


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """A manifest of 11 recordings, of which the third is no audio and the eighth is not there."""
  folder = tmp_path_factory.mktemp('corpus')
  source, lines = SyntheticSource(11, seed=0), []
  for i in range(11):
    item, path = source[i], f'{i % 2}/{i:02d}.wav'
    (folder / path).parent.mkdir(exist_ok=True)
    if i == 2:
      (folder / path).write_text('not audio')
    elif i != 7:
      soundfile.write(folder / path, item['audio'][:5000 + 700 * i], 16000)
    row = {'path': path, 'emotion': EMOTIONS[item['emotion']], 'text': f'Zażółć {i}.', 'lang': None}
    lines.append(row | {'words': [['Zażółć', 0.0, 0.2]], 'split': 'test' if i > 8 else 'train'})
  manifest = folder / 'manifest.jsonl'
  manifest.write_text(''.join(json.dumps(row) + '\n' for row in lines))
  return manifest


@pytest.fixture(scope='module')
def made(run, corpus, tmp_path_factory):
  """The corpus in both formats, made by two processes in batches, without a break."""
  out = tmp_path_factory.mktemp('made') / 'tokens'
  assert _tokenize(corpus, out, run, '--format', 'both', '--processes', '2', '--batch', '2') == 0
  return out


def _tokenize(corpus, out, run, *more):
  return cli.main(['tokenize', str(corpus), str(out), '--checkpoint', str(run), '--kbps', '1.5',
                   '--shard-files', '4', *more])


def _files(folder):
  return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_names_that_are_not_unicode_are_no_obstacle(made, tmp_path):
  """A name of other bytes, half of a character in a text: kept in ArrayRecord, escaped in Parquet."""
  clip = next(token_shards.read_clips(made)) | {'path': 'caf\udce9.wav', 'text': 'so \ud83d'}
  assert token_shards.read_record(token_shards.write_record(clip))['path'] == clip['path']
  pytest.importorskip('pyarrow')
  from pyarrow import parquet
  token_shards.write_shard(tmp_path / 'a.parquet', [clip])
  assert parquet.read_table(tmp_path / 'a.parquet').to_pylist()[0]['text'] == 'so \\ud83d'


def test_damaged_folders_get_one_line(made, tmp_path):
  out = tmp_path / 'tokens'
  shutil.copytree(made, out)
  first = sorted(out.glob('*.arrayrecord'))[0]
  for damage, message in (
      (lambda: first.write_bytes(first.read_bytes()[:100]), 'damaged'),
      (lambda: first.write_bytes(b''), 'missing or empty'),
      (first.unlink, 'missing or empty'),
      (lambda: (out / 'tokens.json').write_text('{"settings": {}, "shards": {"a": 1}}'),
       'settings.shards: Field required')):
    damage()
    with pytest.raises(UserError, match=message):
      list(token_shards.read_clips(out))


def test_shards_hold_what_the_codec_says_and_what_is_known(made, run, corpus):
  assert [p.name for p in sorted(made.glob('*.arrayrecord'))] == [
      f'tokens-{i:05d}-of-00003.arrayrecord' for i in range(3)]
  clips, codec = list(token_shards.read_clips(made)), load(run)
  assert [c['path'] for c in clips] == [f'{i % 2}/{i:02d}.wav' for i in range(11) if i not in (2, 7)]
  for i, clip in zip((0, 1, 3, 4, 5, 6, 8, 9, 10), clips):
    audio = read_audio(corpus.parent / clip['path'])
    tokens = codec.encode(audio, 16000, 1.5)
    assert clip['codes'].shape == (-(-len(audio) // 320), 2) and clip['codes'].dtype == np.int32
    assert np.mean(clip['codes'] == tokens.codes) > 0.98  # rounding of one thread and of many may differ
    assert clip['num_samples'] == len(audio) and clip['seconds'] == len(audio) / 16000
    assert clip['gain_db'] == pytest.approx(tokens.gain_db, abs=1e-4)
    assert (clip['speaker'], clip['text'], clip['lang']) == (str(i % 2), f'Zażółć {i}.', None)
    assert clip['emotion'] == EMOTIONS[i % 8] and clip['split'] == ('test' if i > 8 else 'train')
    assert json.loads(clip['other']) == {'words': [['Zażółć', 0.0, 0.2]]}
  assert codec.decode(token_shards.clip_tokens(clips[0])).shape == (5000,)


def test_bad_files_are_listed_with_their_reasons(made):
  lines = [json.loads(line) for line in (made / 'skipped.jsonl').read_text().splitlines()]
  assert [(x['path'], x['shard']) for x in lines] == [('0/02.wav', 0), ('1/07.wav', 1)]
  assert 'not a readable audio file' in lines[0]['reason'] and lines[1]['reason'] == 'no such file'
  shards = token_shards.read_index(made)['shards']
  assert [(s['clips'], s['skipped']) for s in shards.values()] == [(3, 1), (3, 1), (3, 0)]


def test_parquet_holds_the_same(made):
  parquet = pytest.importorskip('pyarrow.parquet')
  paths = token_shards.shard_paths(made, 'parquet')
  rows = [row for path in paths for row in parquet.read_table(path).to_pylist()]
  for row, clip in zip(rows, token_shards.read_clips(made), strict=True):
    tokens, wanted = token_shards.clip_tokens(row), token_shards.clip_tokens(clip)
    np.testing.assert_array_equal(tokens.codes, wanted.codes)
    assert dataclasses.astuple(tokens)[1:] == dataclasses.astuple(wanted)[1:]
    np.testing.assert_array_equal(row.pop('codes'), clip['codes'])
    assert row == {k: v for k, v in clip.items() if k != 'codes'}


def test_parquet_of_long_clips_takes_little_memory(tmp_path):
  """A list of Python's numbers takes 109 bytes a code, arrays, the shard and its copy a tenth of that."""
  pytest.importorskip('pyarrow.parquet')
  rng = np.random.default_rng(0)
  codes = [rng.integers(0, 2 ** 15, shape, np.int32) for shape in ((30000, 8), (1, 2))]
  clips = [token_shards.make_clip(afc.Tokens(c, len(c) * 320, 0.0, bytes(8)), 'a', {}) for c in codes]
  token_shards.write_shard(tmp_path / 'a.parquet', clips[:1])  # pyarrow is imported
  tracemalloc.start()
  token_shards.write_shard(tmp_path / 'b.parquet', clips)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 15 * 240002
  rows = pytest.importorskip('pyarrow.parquet').read_table(tmp_path / 'b.parquet').to_pylist()
  for row, clip in zip(rows, clips, strict=True):
    np.testing.assert_array_equal(row['codes'], clip['codes'])


def test_two_commands_do_not_write_to_one_folder(corpus, run, tmp_path, capsys):
  with files.held_alone(tmp_path):
    assert _tokenize(corpus, tmp_path, run) == 2
    assert 'another process is writing to it' in capsys.readouterr().err
    assert cli.main(['pack', str(corpus), str(tmp_path)]) == 2
    assert 'another process is writing to it' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_device_without_memory_is_not_the_recordings_fault(tmp_path):
  class Codec:
    def encode_batch(self, *args):
      raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes')

  short, long = tmp_path / 'a.wav', tmp_path / 'b.wav'
  soundfile.write(short, np.zeros(8000), 16000)
  soundfile.write(long, np.zeros(330000), 16000)  # as a whole, by a teacher with attention
  encode = functools.partial(tokenize_corpus._encode, lambda checkpoint: Codec(), 'x', None, 2)
  with pytest.raises(UserError, match='not enough memory'):
    encode([short])
  (tokens, reason), = encode([long])
  assert tokens is None and 'RESOURCE_EXHAUSTED' in reason


def test_a_killed_run_goes_on_to_the_same_files(made, run, corpus, tmp_path, capsys):
  """Killed for good, so early that only one shard is done; by one process where `made` had two."""
  out = tmp_path / 'tokens'
  more = ['--format', 'both', '--processes', '1']
  command = [sys.executable, '-m', 'affectcodec_jax', 'tokenize', str(corpus), str(out), '--checkpoint',
             str(run), '--kbps', '1.5', '--shard-files', '4', *more]
  first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  until = time.time() + 120
  while time.time() < until and first.poll() is None and not (
      (out / 'tokens.json').exists() and token_shards.read_index(out)['shards']):
    time.sleep(0.005)
  os.kill(first.pid, signal.SIGKILL)
  first.wait()
  index = token_shards.read_index(out)
  index['shards'] = {'0': index['shards']['0']}  # what it did while it was looked at is without an entry
  write_json(out / 'tokens.json', index)
  (out / '.tokens-00001-of-00003.parquet.123.tmp').write_text('half')
  kept = (out / 'tokens-00000-of-00003.arrayrecord').stat().st_mtime_ns
  with pytest.raises(UserError, match='1 of 3 shards'):
    token_shards.shard_paths(out)
  assert _tokenize(corpus, out, run, *more) == 0
  assert '1 of 3 shards are finished' in capsys.readouterr().out
  assert _files(out) == _files(made)
  assert (out / 'tokens-00000-of-00003.arrayrecord').stat().st_mtime_ns == kept


def test_a_shard_that_lacks_a_file_is_made_again(made, tmp_path):
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  (tmp_path / 'tokens-00001-of-00003.parquet').unlink()
  index, skipped = tokenize_corpus._resume(tmp_path, token_shards.read_index(made)['settings'])
  assert list(index['shards']) == ['0', '2']
  assert [line['path'] for line in skipped] == ['0/02.wav']


def test_other_settings_are_refused_and_nothing_is_touched(made, run, corpus, tmp_path, capsys):
  before = _files(made)
  out = ['tokenize', str(corpus), str(made), '--checkpoint', str(run)]
  cases = [([*out, '--kbps', '0.75', '--shard-files', '4', '--split', 'test'],
            'kbps 1.5, now 0.75; formats [\'arrayrecord\', \'parquet\'], now [\'arrayrecord\']; files 11, '
            'now 2; list_sha256 '),
           ([*out, '--kbps', '2'], 'not a rate'),
           ([*out, '--shard-files', '0'], 'at least 1'),
           ([*out, '--split', 'none'], "split 'none'"),
           (['tokenize', str(tmp_path), str(tmp_path / 'x'), '--checkpoint', str(run)], 'no audio file'),
           (['tokenize', str(corpus.parent / 'no'), str(tmp_path / 'x')], 'no such folder')]
  for args, message in cases:
    capsys.readouterr()
    assert cli.main(args) == 2, args
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and err[0].startswith('error: ') and message in err[0], err
  assert _files(made) == before


def test_no_setting_may_differ_nor_may_files_lie_there(made, corpus, tmp_path):
  settings = token_shards.read_index(made)['settings']
  for name in settings:  # the codec, the rate, the list of files, …
    with pytest.raises(UserError, match=f'made otherwise .{name} .*, now 00'):
      tokenize_corpus._resume(made, settings | {name: '00'})
  stray = tmp_path / 'tokens-00000-of-00001.parquet'
  stray.write_text('precious')
  with pytest.raises(UserError, match='no tokens.json'):
    tokenize_corpus._resume(tmp_path, settings)
  assert stray.read_text() == 'precious'


def test_nothing_but_bad_files_is_an_error(run, tmp_path, capsys):
  data = tmp_path / 'data'
  data.mkdir()
  (data / 'a.wav').write_text('not audio')
  assert _tokenize(data, tmp_path / 'out', run, '--processes', '1') == 2
  assert 'none of the 1 recordings' in capsys.readouterr().err
  assert list(token_shards.read_clips(tmp_path / 'out')) == []


def test_a_recording_that_kills_its_process_is_skipped(tmp_path, monkeypatch):
  """An encoder in a module of its own, because processes that import little begin at once."""
  (tmp_path / 'fake_encoder.py').write_text(textwrap.dedent('''
      import os

      def encode(paths):
        if 'deadly' in paths:
          os._exit(1)
        return [(path.upper(), None) for path in paths]
      '''))
  monkeypatch.syspath_prepend(tmp_path)
  import fake_encoder
  chunks = [(0, [{'path': p} for p in pair]) for pair in ('ab', ('c', 'deadly'), 'de', 'fg')]
  results = list(tokenize_corpus._in_order(chunks, fake_encoder.encode, 2))
  assert [chunk for chunk, _ in results] == chunks
  results_in_order = [tokens for _, part in results for tokens, _ in part]
  assert results_in_order == ['A', 'B', 'C', None, 'D', 'E', 'F', 'G']
  assert 'died' in results[1][1][1][1]


def test_damaged_records_are_refused(made):
  clip = next(token_shards.read_clips(made))
  record = token_shards.write_record(clip)
  again = token_shards.read_record(record)
  np.testing.assert_array_equal(again.pop('codes'), clip['codes'])
  assert again == {k: v for k, v in clip.items() if k != 'codes'}
  for bad in (b'', record[:40], record[:-1], record[:-1] + bytes([record[-1] ^ 128])):
    with pytest.raises(UserError):
      token_shards.read_record(bad)


def test_an_outage_is_not_a_damaged_file(monkeypatch):
  """What the network did not give is not left out of the tokens: the run ends there, to go on later."""
  def fail(path, pipes):
    raise OSError(errno.EIO, 'Input/output error')
  monkeypatch.setattr('affectcodec_jax.audio.read_audio', fail)
  monkeypatch.setattr(retry, 'PAUSES', ())
  with pytest.raises(UserError, match='a.wav: .*the same command goes on'):
    tokenize_corpus._encode(lambda checkpoint: None, 'pretrained', None, 1, ['a.wav'])
