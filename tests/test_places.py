"""Names, places and data sets as they are found: not UTF-8, hidden, linked, no home, too few, silent."""

import json
import logging
import os
import pathlib
import subprocess
import sys

from ml_collections import ConfigDict
import numpy as np
import pytest
import soundfile

from affectcodec_jax.audio import read_audio, write_audio
from affectcodec_jax.common import places, progress
from affectcodec_jax.common.errors import UserError, run_command
from affectcodec_jax.data import pipeline
from affectcodec_jax.data.folder import FolderSource, list_rows, select_rows
from affectcodec_jax.tokens import afc, shards

ROOT = pathlib.Path(__file__).parent.parent
LATIN = os.fsdecode(b'caf\xe9.wav')  # a name that is not UTF-8
SOUND = (0.3 * np.sin(np.arange(8000) * 0.2)).astype(np.float32)


def recording(path, sound=SOUND):
  path.parent.mkdir(parents=True, exist_ok=True)
  write_audio(path, sound)
  return path


# ---- Names ----


def test_names_that_are_not_utf8(tmp_path):
  """They were "not a readable audio file"; splits ended in a traceback."""
  for i in range(4):
    recording(tmp_path / f'{i}{LATIN}')
  assert len(read_audio(tmp_path / f'0{LATIN}')) == 8000
  source = FolderSource(tmp_path, 'train')
  assert len(source) == 2 and source[0]['audio'].size == 8000 and source.digest()
  rows = select_rows(list_rows(tmp_path), 'valid', tmp_path)
  tokens = afc.Tokens(np.zeros((25, 2), np.int32), 8000, 0.0, b'12345678')
  clip = shards.read_record(shards.write_record(shards.make_clip(tokens, rows[0]['key'], {})))
  assert clip['path'] == rows[0]['key']
  manifest = tmp_path / 'm.jsonl'
  manifest.write_text(json.dumps({'path': f'1{LATIN}'}) + '\n')
  assert len(FolderSource(manifest)) == 1


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_such_names_are_printed(tmp_path, encoding):
  """A traceback after the work was done."""
  recording(tmp_path / LATIN)
  tokens = afc.Tokens(np.zeros((25, 4), np.int32), 8000, 0.0, b'12345678')
  afc.write_tokens(tmp_path / f'{LATIN}.afc', tokens)
  env = {**os.environ, 'PYTHONIOENCODING': encoding}
  for args in (['info', f'{LATIN}.afc'], ['truncate', f'{LATIN}.afc', f'ż{LATIN}.cut', '--stages', '2']):
    command = [sys.executable, '-m', 'affectcodec_jax', *args]
    done = subprocess.run(command, cwd=tmp_path, env=env | {'PYTHONPATH': str(ROOT)}, capture_output=True)
    assert done.returncode == 0 and b'caf\\udce9' in done.stdout, done.stderr


def test_a_closed_pipe_is_no_error(tmp_path):
  """`… --help | head` ended with an error about the pipe."""
  reader, writer = os.pipe()
  os.close(reader)
  command = [sys.executable, '-u', '-m', 'affectcodec_jax', '--help']
  with os.fdopen(writer, 'wb') as closed:
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=closed,
                          stderr=subprocess.PIPE)
  assert done.returncode == 141 and not done.stderr


def test_hidden_folders_are_left_out_and_links_followed(tmp_path):
  """`.Trash-1000` was trained on; linked subfolders were not found."""
  data = tmp_path / 'data'
  recording(data / 'anna' / 'a.wav')
  for hidden in ('.Trash-1000/files', '.ipynb_checkpoints', 'anna/.cache', '$RECYCLE.BIN', '#recycle',
                 'anna/@eaDir', '__MACOSX', 'lost+found', 'System Volume Information'):
    recording(data / hidden / 'b.wav')
  recording(data / 'anna' / '._a.wav')
  recording(tmp_path / 'elsewhere' / 'bert' / 'c.wav')
  (data / 'linked').symlink_to(tmp_path / 'elsewhere')
  (data / 'again').symlink_to(tmp_path / 'elsewhere' / 'bert')  # the same once more
  (data / 'anna' / 'loop').symlink_to(data)
  (data / 'up').symlink_to(tmp_path)
  (data / 'broken').symlink_to(tmp_path / 'none')
  (data / 'd.wav').symlink_to(data / 'anna' / 'a.wav')
  os.mkfifo(data / 'e.wav')
  keys = [row['key'] for row in list_rows(data)]
  assert keys == ['again/c.wav', 'anna/a.wav', 'd.wav']  # links in the order of their names


def test_pipes_folders_and_devices_in_a_manifest_are_skipped(tmp_path, caplog):
  """Waited for, for ever; a name ending in .raw was a traceback."""
  recording(tmp_path / 'a.wav')
  os.mkfifo(tmp_path / 'pipe.wav')
  (tmp_path / 'noise.raw').write_bytes(bytes(range(256)) * 100)
  (tmp_path / 'folder.wav').mkdir()
  names = ['a.wav', 'pipe.wav', 'noise.raw', 'folder.wav', '/dev/zero', '', 'a\0b.wav', '\ud800.wav', '..']
  (tmp_path / 'm.jsonl').write_text(''.join(json.dumps({'path': name}) + '\n' for name in names))
  source = FolderSource(tmp_path / 'm.jsonl')
  assert len(source) == 1 and source.skipped == len(names) - 1
  assert 'not a regular file' in caplog.text


@pytest.mark.parametrize('row', [
    '[' * 100_000, '{"path": ' * 50_000, '3', '"a"', 'null', '{"path": 3}', '{"path": ["a"]}', '{}'])
def test_rows_that_are_none(tmp_path, row):
  (tmp_path / 'm.jsonl').write_text(row)
  with pytest.raises(UserError, match='line 1: expected a JSON object with "path"'):
    list_rows(tmp_path / 'm.jsonl')


def test_an_error_is_one_line_whatever_the_name(capsys, caplog):
  """Names may hold line breaks, and orders to a terminal."""
  assert run_command(lambda: read_audio('a\nerror: \x1b[2J.wav')) == 2
  assert capsys.readouterr().err == 'error: a\\x0aerror: \\x1b[2J.wav: no such file\n'
  assert progress.escape_control('a\tbé\udce9') == 'a\\x09bé\udce9'


# ---- Places ----


def test_no_home(tmp_path):
  """A folder called `~` appeared."""
  code = ('import os, pwd\npwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))\n'
          'from affectcodec_jax.common import compilation_cache\nimport jax\n'
          'compilation_cache.use_compilation_cache()\n'
          'print(jax.config.jax_compilation_cache_dir)')
  places = ('HOME', 'XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR')
  env = {k: v for k, v in os.environ.items() if k not in places}
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env | {'PYTHONPATH': str(ROOT)},
                        capture_output=True, text=True)
  assert done.stdout == 'None\n' and not os.listdir(tmp_path), done.stderr


@pytest.mark.parametrize('root', ['relative', '/proc/none', '/dev/null/x'])
def test_a_cache_that_cannot_be(tmp_path, monkeypatch, root):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', root)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  expected = str(tmp_path / 'home/.cache/affectcodec_jax/jax') if root == 'relative' else None
  assert places.cache_folder('jax') == expected and not (tmp_path / 'relative').exists()


@pytest.mark.parametrize('platform', ['cuda', 'tpu', 'nonsense'])
def test_a_device_that_is_not_there(platform):
  code = 'import sys\nfrom affectcodec_jax.__main__ import main\nsys.exit(main(["info"]))'
  env = {**os.environ, 'JAX_PLATFORMS': platform, 'PYTHONPATH': str(ROOT)}
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  printed = f"error: JAX finds no device for JAX_PLATFORMS='{platform}'"
  assert done.stderr.splitlines()[-1].startswith(printed)


def test_the_variable_that_names_the_device_is_named(monkeypatch):
  for name in ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('JAX_PLATFORM_NAME', 'gpu')
  assert "JAX_PLATFORM_NAME='gpu'" in places.no_device(RuntimeError('none'))


def test_other_errors_of_the_program_stay_visible():
  def broken():
    raise RuntimeError('a bug')

  with pytest.raises(RuntimeError, match='a bug'):
    run_command(broken)


# ---- Data sets ----


@pytest.mark.parametrize('count', [1, 2])
def test_one_file_is_enough_to_begin_with(tmp_path, count, caplog):
  """It was refused for want of a valid split."""
  for i in range(count):
    recording(tmp_path / f'{i}.wav')
  sizes = {split: len(FolderSource(tmp_path, split)) for split in ('train', 'valid', 'test')}
  assert set(sizes.values()) == {count}
  assert [m for m in caplog.messages if 'too few files to hold any out' in m]


def iterator(source):
  data = ConfigDict({'gain_db': 0.0, 'speed': 0.0, 'equalise_db': 0.0})
  return pipeline.make_iterator(source, data, batch_size=2, crop_samples=3200, seed=0)


def test_digital_silence_is_not_trained_on(tmp_path, caplog):
  """Its gradients were 1e14."""
  silence = recording(tmp_path / 'silent' / 'a.wav', np.zeros(8000))
  with pytest.raises(UserError, match='digital silence'):
    next(iterator(FolderSource(silence.parent)))
  mixed = tmp_path / 'mixed'
  recording(mixed / 'a.wav', np.zeros(8000))
  recording(mixed / 'b.wav', np.concatenate([np.zeros(100000), SOUND[:400], np.zeros(20000)]))
  batches = iterator(FolderSource(mixed))
  caplog.clear()
  for _ in range(8):
    assert (np.abs(next(batches)['audio']).max(axis=1) > 1e-3).all()
  assert len([m for m in caplog.messages if 'digital silence' in m]) == 1


def test_a_damaged_file_is_reported_once(tmp_path, caplog):
  for name in 'ab':
    recording(tmp_path / f'{name}.wav')
  source = FolderSource(tmp_path)
  (tmp_path / 'a.wav').write_bytes(b'gone')
  with caplog.at_level(logging.WARNING):
    for _ in range(5):
      assert source[0] is None and source[1] is not None
  assert len(caplog.messages) == 1 and source.skipped == 1


def test_a_changed_data_set_is_reported(tmp_path):
  for i in range(4):
    recording(tmp_path / 'data' / f'{i}.wav')
  changed = lambda: pipeline.data_changed(tmp_path, FolderSource(tmp_path / 'data'))
  assert changed() is None and changed() is None
  recording(tmp_path / 'data' / '9.wav')
  assert '4 clips then, 5 now' in changed()
  assert changed() is None
  recording(tmp_path / 'data' / '9.wav', np.tile(SOUND, 2))
  assert 'of other names, lengths or labels' in changed()
  (tmp_path / 'data.json').write_text('[' * 100_000)
  assert changed() is None
  assert pipeline.data_changed(tmp_path, [1, 2]).startswith('the training data')


def test_a_header_that_promises_too_much(tmp_path):
  """A window behind the end of what is there: its beginning is read instead."""
  soundfile.write(tmp_path / 'a.flac', np.tile(SOUND, 100), 16000)
  data = (tmp_path / 'a.flac').read_bytes()
  (tmp_path / 'a.flac').write_bytes(data[:len(data) // 4])
  item = FolderSource(tmp_path).read(0, 40.0, 5.0)
  assert item is not None and len(item['audio']) == 80000
