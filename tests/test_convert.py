"""encode and decode of folders: the same tree, kept where it is done, damaged files named at the end."""

import os
import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax import load
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.tokens import afc


@pytest.fixture(scope='module')
def run(untrained):
  return untrained


@pytest.fixture
def speech(tmp_path):
  """Three recordings at two depths, one damaged, and what is no speech or hidden."""
  folder = tmp_path / 'speech'
  for i, name in enumerate(('a.wav', 'deep/er/b.flac', 'deep/c.wav')):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, SyntheticSource(3, seed=0)[i]['audio'][:8000 + i], 16000)
  (folder / 'deep' / 'bad.wav').write_bytes(b'RIFF')
  (folder / 'notes.txt').write_text('not speech')
  (folder / '.hidden').mkdir()
  shutil.copy(folder / 'a.wav', folder / '.hidden' / 'a.wav')
  return folder


@pytest.fixture
def quick(run, monkeypatch):
  """The codec's rates and name, with arithmetic in the place of its networks: for what is about files."""
  codec = load(run)

  def encode_batch(recordings, rate, kbps, progress, refine):
    return [afc.Tokens(np.tile((1000 * np.abs(r[::320])).astype(np.int32)[:, None], codec.num_stages(kbps)),
                       len(r), 0.0, codec.fingerprint) for r in recordings]

  codec.encode_batch = encode_batch
  codec.decode_batch = lambda tokens, kbps, progress: [
      np.resize(t.codes[:, 0] / 1000, t.num_samples).astype(np.float32) for t in tokens]
  monkeypatch.setattr('affectcodec_jax.cli.folders.load', lambda checkpoint: codec)


def files(folder):
  """{name: content} of all files below."""
  folder = pathlib.Path(folder)
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def times(folder):
  return {p: p.stat().st_mtime_ns for p in pathlib.Path(folder).rglob('*') if p.is_file()}


def convert(command, source, out, run, *more):
  return cli.main([command, str(source), str(out), '--checkpoint', str(run), '--workers', '1', *more])


def test_a_folder_and_back_is_each_file_by_itself(run, speech, tmp_path, capsys):
  """There by two spawned processes, which a damaged file does not stop, back by this one."""
  tokens, out = tmp_path / 'tokens', tmp_path / 'out'
  assert convert('encode', speech, tokens, run, '--kbps', '1.5', '--workers', '2') == 2  # bad.wav
  said = capsys.readouterr()
  assert said.out == f'{tokens}: 3 encoded, 0 kept as they were, 1 failed\n'
  assert said.err.startswith(f'error: {speech}/deep/bad.wav: not a readable audio file')
  assert said.err.count('\n') == 1
  assert set(files(tokens)) == {'a.afc', 'deep/er/b.afc', 'deep/c.afc'}
  for name in ('a.wav', 'deep/er/b.flac', 'deep/c.wav'):
    one = tmp_path / 'one.afc'
    words = ['encode', str(speech / name), str(one), '--checkpoint', str(run)]
    assert cli.main([*words, '--kbps', '1.5']) == 0
    assert one.read_bytes() == (tokens / name).with_suffix('.afc').read_bytes()
  assert convert('decode', tokens, out, run) == 0
  assert set(files(out)) == {'a.wav', 'deep/er/b.wav', 'deep/c.wav'}
  codec = load(run)
  for path in out.rglob('*.wav'):
    wanted = codec.decode(afc.read_tokens((tokens / path.relative_to(out)).with_suffix('.afc')))
    # 16-bit samples: half a step of rounding, and as much again between float32 and the file.
    np.testing.assert_allclose(soundfile.read(path)[0], np.clip(wanted, -1, 1), atol=1.01 / 32768)


def test_what_is_done_is_kept_and_only_that(run, quick, speech, tmp_path, capsys):
  """Kept: whole, newer, of this codec and rate. A file cut short, an older one, another rate: made anew."""
  tokens, out = tmp_path / 'tokens', tmp_path / 'out'
  (speech / 'deep' / 'bad.wav').unlink()
  assert convert('encode', speech, tokens, run, '--kbps', '1.5') == 0
  assert convert('decode', tokens, out, run) == 0
  before, contents = times(tmp_path), files(tmp_path)
  assert convert('encode', speech, tokens, run, '--kbps', '1.5') == convert('decode', tokens, out, run) == 0
  assert times(tmp_path) == before and '0 encoded, 3 kept' in capsys.readouterr().out
  (tokens / 'a.afc').write_bytes((tokens / 'a.afc').read_bytes()[:-1])  # a crash of the disk
  later = (tokens / 'deep' / 'c.afc').stat().st_mtime_ns + 1
  os.utime(speech / 'deep' / 'c.wav', ns=(later, later))
  soundfile.write(out / 'deep' / 'er' / 'b.wav', np.zeros(10), 16000)
  assert convert('encode', speech, tokens, run, '--kbps', '1.5') == 0
  assert convert('decode', tokens, out, run, '--overwrite') == 0
  said = capsys.readouterr().out
  assert '2 encoded, 1 kept' in said and '3 decoded, 0 kept' in said
  assert files(tmp_path) == contents
  for options in (['--kbps', '0.75'], ['--kbps', '0.75', '--entropy']):
    assert convert('encode', speech, tokens, run, *options) == 0
    assert '3 encoded' in capsys.readouterr().out
    assert convert('encode', speech, tokens, run, *options) == 0
    assert '3 kept' in capsys.readouterr().out


def test_recordings_are_not_replaced_by_what_is_decoded(run, quick, speech, tmp_path, capsys):
  (speech / 'deep' / 'bad.wav').unlink()
  tokens, before = tmp_path / 'tokens', files(speech)
  assert convert('encode', speech, tokens, run) == 0
  assert convert('decode', tokens, speech, run) == 2
  said = capsys.readouterr()
  assert said.err.count('is there already, older than') == said.err.count('\n') == 2
  assert '1 decoded' in said.out  # b.wav, beside the recording b.flac
  assert {name: data for name, data in files(speech).items() if name in before} == before


def test_mistakes_get_one_line_and_touch_nothing(run, speech, tmp_path, capsys):
  (tmp_path / 'file').write_text('precious')
  (tmp_path / 'empty').mkdir()
  shutil.copy(speech / 'a.wav', speech / 'a.flac')
  before = files(tmp_path)
  for words, message in (
      (['encode', speech, tmp_path / 'file'], 'is a file'),
      (['encode', speech, speech / 'tokens'], 'choose a folder outside'),
      (['decode', speech, speech], 'choose a folder outside'),
      (['encode', speech, '-'], 'does not go to standard output'),
      (['encode', tmp_path / 'empty', tmp_path / 'out'], 'holds no file'),
      (['decode', speech, tmp_path / 'out'], 'holds no file that ends in .afc'),
      (['encode', speech, tmp_path / 'out'], 'would both become'),
      (['encode', speech, tmp_path / 'out', '--workers', '0'], 'at least 1')):
    assert cli.main([*map(str, words), '--checkpoint', str(run)]) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ') and err.count('\n') == 1 and message in err, err
  (speech / 'a.flac').unlink()
  del before['speech/a.flac']
  for words, message in ((['--kbps', '2'], 'not a rate'),
                         (['--checkpoint', str(tmp_path)], 'training run')):
    assert cli.main(['encode', str(speech), str(tmp_path / 'out'), '--checkpoint', str(run), *words]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and message in err, err
  assert files(tmp_path) == before
