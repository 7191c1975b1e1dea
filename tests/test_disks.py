"""Full disks, rights, kills: every write is whole or reported, and what was there before stays."""

import errno
import json
import os
import pathlib
import stat
import subprocess
import types

import numpy as np
import pytest

from affectcodec_jax import __main__ as cli
from affectcodec_jax.audio import read_audio, write_audio
from affectcodec_jax.common import files
from affectcodec_jax.common.errors import UserError, run_command
from affectcodec_jax.tokens import afc, shards
from affectcodec_jax.training import checkpoints, metric_writer
from tests.conftest import Position
from tests.small_step import State

NOISE = (np.random.default_rng(0).normal(size=16000 * 300) * 0.1).astype(np.float32)
SUFFIXES = ('wav', 'flac', 'ogg', 'mp3')


@pytest.fixture
def disk(tmp_path):
  """A function that mounts a file system of so many KB; only root may."""
  mounted = []

  def mount(kilobytes, options='rw'):
    folder = tmp_path / f'disk{len(mounted)}'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k,{options}', 'tmpfs', str(folder)]
    try:
      done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
      pytest.skip('no mount here')
    if done.returncode:
      pytest.skip('may not mount file systems')
    mounted.append(folder)
    return folder

  yield mount
  for folder in mounted:
    subprocess.run(['umount', '-l', str(folder)], check=True)


def full(*args, **options):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_sound_on_a_full_disk(disk, suffix):
  """FLAC, OGG and MP3 reported success and left a damaged file in place of a good one."""
  path = disk(600) / f'a.{suffix}'
  write_audio(path, NOISE[:16000])
  before = path.read_bytes()
  with pytest.raises(UserError, match='cannot be written .No space left'):
    write_audio(path, NOISE)
  assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize('at', range(3))
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_sound_whose_nth_write_fails(tmp_path, monkeypatch, suffix, at):
  """The same without a mount: also the write that only closing the file makes."""
  path = tmp_path / f'a.{suffix}'
  path.write_bytes(b'precious')
  calls = []

  class Failing:
    def __init__(self, file):
      self._file = file

    def write(self, data):
      calls.append(len(data))
      return full() if len(calls) > at else self._file.write(data)

    def __getattr__(self, name):
      return getattr(self._file, name)

  from affectcodec_jax import audio
  monkeypatch.setattr(audio, 'Sink', lambda file, make=audio.Sink: make(Failing(file)))
  with pytest.raises(UserError, match='No space left'):
    write_audio(path, NOISE[:32000])
  assert path.read_bytes() == b'precious' and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize('name', ['fsync', 'replace'])
def test_what_fails_last_is_told_too(tmp_path, monkeypatch, name):
  """Network file systems and quotas report at the end."""
  path = tmp_path / 'a.json'
  files.write_json(path, 1)
  monkeypatch.setattr(os, name, full)
  with pytest.raises(UserError, match='No space left'):
    files.write_json(path, 2)
  assert json.loads(path.read_text()) == 1 and os.listdir(tmp_path) == ['a.json']


def test_a_short_write_is_noticed(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  files.write_json(path, 1)
  write = pathlib.Path.write_bytes
  monkeypatch.setattr(pathlib.Path, 'write_bytes', lambda self, data: write(self, data[:-1]))
  with pytest.raises(UserError, match='of 2 bytes were written'):
    files.write_json(path, 2)
  assert path.read_text() == '1\n' and os.listdir(tmp_path) == ['a.json']


def test_permissions_stay(tmp_path):
  """A private file became readable for all; a write-protected one was overwritten."""
  path = tmp_path / 'a.json'
  files.write_json(path, 1)
  mask = os.umask(0)
  os.umask(mask)
  assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
  for mode in (0o600, 0o640, 0o666):
    path.chmod(mode)
    files.write_json(path, mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode and json.loads(path.read_text()) == mode
  path.chmod(0o444)
  with pytest.raises(UserError, match='write-protected'):
    files.write_json(path, 2)
  assert json.loads(path.read_text()) == 0o666
  link = tmp_path / 'link'
  link.symlink_to(path)
  path.chmod(0o600)
  files.write_json(link, 3)
  assert link.is_symlink() and json.loads(path.read_text()) == 3


def test_a_private_file_is_private_while_it_is_written(tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(b'')
  path.chmod(0o600)
  with files.whole(path) as temporary:
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


@pytest.mark.parametrize('name', ['x' * 250, 'ż' * 120, os.fsdecode(b'\xe9' * 200)])
def test_long_names(tmp_path, name):
  files.write_whole(tmp_path / name, b'data')
  files.write_whole(tmp_path / name, b'more')
  assert (tmp_path / name).read_bytes() == b'more' and len(os.listdir(tmp_path)) == 1


def test_a_folder_without_rights_is_noticed_before_the_work(disk, tmp_path, capsys, monkeypatch):
  write_audio(tmp_path / 'in.wav', NOISE[:8000])
  folder = disk(100, 'ro')
  from affectcodec_jax import api
  monkeypatch.setattr(api, 'load', lambda *a: pytest.fail('loaded before'))
  assert cli.main(['encode', str(tmp_path / 'in.wav'), str(folder / 'out.afc')]) == 2
  assert 'Read-only file system' in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can try to be another')
def test_an_input_without_rights(tmp_path):
  """It was "System error"."""
  write_audio(tmp_path / 'in.wav', NOISE[:8000])
  (tmp_path / 'in.afc').write_bytes(b'AFCT')
  for name in ('in.wav', 'in.afc'):
    (tmp_path / name).chmod(0)
  for folder in (tmp_path, *tmp_path.parents[:3]):
    if str(folder).startswith('/tmp/'):
      folder.chmod(0o755)
  os.seteuid(65534)
  try:
    for read, name in ((read_audio, 'in.wav'), (afc.read_tokens, 'in.afc')):
      with pytest.raises(UserError, match='cannot be read .Permission denied'):
        read(tmp_path / name)
  finally:
    os.seteuid(0)


def test_shards_on_a_full_disk(disk):
  folder = disk(600)
  codes = np.random.default_rng(0).integers(0, 2 ** 15, (5000, 8)).astype(np.int32)
  recordings = [afc.Tokens(np.roll(codes, i), 1600000, 0.0, b'12345678') for i in range(12)]
  clips = [shards.make_clip(tokens, 'a', {}) for tokens in recordings]
  for kind in shards.FORMATS:
    if kind == 'parquet':
      pytest.importorskip('pyarrow')
    with pytest.raises(UserError, match='cannot be written'):
      shards.write_shard(folder / f'x.{kind}', clips)
    assert not os.listdir(folder)


# ---- Training ----


def test_metrics_survive_a_kill_while_they_are_rewritten(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
  lines = ''.join(json.dumps({'step': i}) + '\n' for i in range(1, 9))
  path.write_text(lines + '3\n[]\n{"st')

  def killed(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
      metric_writer.MetricWriter(tmp_path, 4, 8)
  assert path.read_text().startswith(lines)
  metric_writer.MetricWriter(tmp_path, 4, 8).close()
  assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_metrics_on_a_full_disk(disk):
  """TensorBoard's thread ended by the error, and after ten more values the trainer waited for ever."""
  folder = disk(60)
  writer = metric_writer.MetricWriter(folder, 0, 10 ** 6)
  with pytest.raises(UserError, match='No space left.*make room'):
    for step in range(10 ** 4):
      writer.write(step, {f'loss/{i}': 1.0 for i in range(40)})
  writer.close()


def test_a_checkpoint_on_a_full_disk(disk, capfd):
  """346 tracebacks and exit status 0. The checkpoint before stays."""
  folder = disk(4000)
  weights = {'w': np.random.default_rng(0).normal(size=(1000, 200)).astype(np.float32)}
  manager = checkpoints.make_manager(folder)
  checkpoints.save(manager, State(np.int32(1), weights, {}), Position())
  checkpoints.finish(manager)
  (folder / 'filler').write_bytes(bytes(2_000_000))

  def again():
    checkpoints.save(manager, State(np.int32(2), weights, {}), Position())
    checkpoints.finish(manager)

  capfd.readouterr()
  assert run_command(again) == 2
  printed = capfd.readouterr().err
  assert 'Traceback' not in printed and len(printed.splitlines()) == 1
  assert 'MB are free); make room' in printed
  assert manager.all_steps() == [1]


def test_an_error_of_the_background_writer_is_reported(tmp_path, monkeypatch):
  manager = types.SimpleNamespace(directory=tmp_path, wait_until_finished=full)
  with pytest.raises(UserError, match='could not be written .*No space left.*the same command'):
    checkpoints.finish(manager)
