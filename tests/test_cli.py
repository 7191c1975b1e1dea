"""Command line and library, end to end, on a codec trained for a moment."""

import dataclasses

import numpy as np
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax import load
from affectcodec_jax.audio import level_gain
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.tokens.afc import read_tokens
from configs import base
from tests.conftest import tiny, untrained_release


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of an 8-stage codec."""
  config = tiny(base.get_config())
  config.model.num_stages, config.rates = 8, (2, 4, 8)
  folder = tmp_path_factory.mktemp('codec')
  untrained_release(config, folder)
  return folder


@pytest.fixture(scope='module')
def speech(tmp_path_factory):
  """A 44.1 kHz stereo file of 1.5 s."""
  audio = SyntheticSource(2, seed=0)[0]['audio'][:24000]
  audio = np.interp(np.arange(0, 24000, 16000 / 44100), np.arange(24000), audio)
  path = tmp_path_factory.mktemp('audio') / 'in.wav'
  soundfile.write(path, np.stack([audio, audio], 1), 44100)
  return path


def test_file_to_tokens_to_file(run, speech, tmp_path, capsys):
  tokens, out = tmp_path / 'a.afc', tmp_path / 'a.wav'
  assert cli.main(['encode', str(speech), str(tokens), '--checkpoint', str(run)]) == 0
  assert cli.main(['decode', str(tokens), str(out), '--checkpoint', str(run)]) == 0
  info = soundfile.info(out)
  assert info.samplerate == 16000 and abs(info.frames - 24000) <= 1
  low, cut = tmp_path / 'low.afc', tmp_path / 'cut.afc'
  assert cli.main(['encode', str(speech), str(low), '--checkpoint', str(run), '--kbps', '1.5']) == 0
  assert cli.main(['truncate', str(tokens), str(cut), '--stages', '2']) == 0
  assert cut.read_bytes() == low.read_bytes()
  assert cli.main(['info', str(low)]) == 0
  assert cli.main(['info', str(run)]) == 0
  printed = capsys.readouterr().out
  assert '1.5 kbps' in printed and read_tokens(low).fingerprint.hex() in printed


def test_entropy_coded_files_hold_the_same_tokens(run, speech, tmp_path, capsys):
  plain, coded, cut, low = (tmp_path / f'{name}.afc' for name in ('plain', 'coded', 'cut', 'low'))
  c = ['--checkpoint', str(run)]
  assert cli.main(['encode', str(speech), str(plain), *c]) == 0
  assert cli.main(['encode', str(speech), str(coded), *c, '--entropy']) == 0
  np.testing.assert_array_equal(read_tokens(coded).codes, read_tokens(plain).codes)
  assert coded.stat().st_size < plain.stat().st_size
  assert cli.main(['truncate', str(coded), str(cut), '--stages', '2']) == 0
  assert cli.main(['encode', str(speech), str(low), *c, '--kbps', '1.5', '--entropy']) == 0
  assert cut.read_bytes() == low.read_bytes()
  for name in (plain, coded):
    assert cli.main(['decode', str(name), str(name.with_suffix('.wav')), *c]) == 0
  assert plain.with_suffix('.wav').read_bytes() == coded.with_suffix('.wav').read_bytes()
  capsys.readouterr()
  assert cli.main(['info', str(coded)]) == 0
  saved = 8 * (plain.stat().st_size - coded.stat().st_size)
  assert f'entropy coded: {saved} of {8 * plain.stat().st_size} bits saved' in capsys.readouterr().out


@pytest.mark.parametrize('samples', [1, 319, 320, 321, 5000, 16000, 16001])
def test_samples_out_are_samples_in(run, samples):
  codec = load(run)
  audio = np.random.default_rng(0).normal(size=samples) * 0.1
  tokens = codec.encode(audio, 16000, kbps=3)
  assert tokens.codes.shape == (-(-samples // 320), 4)
  assert codec.decode(tokens).shape == (samples,)


def test_level_comes_back(run):
  """A file 40 dB quieter has the same tokens and decodes 40 dB quieter."""
  codec = load(run)
  audio = SyntheticSource(2, seed=0)[0]['audio'].astype(np.float64)
  loud, quiet = codec.encode(audio, 16000), codec.encode(audio * 0.01, 16000)
  assert np.mean(loud.codes == quiet.codes) > 0.99  # float32 rounding may move a borderline code
  assert abs(loud.gain_db - quiet.gain_db + 40) < 1e-3
  ratio = np.std(codec.decode(quiet)) / np.std(codec.decode(loud))
  assert abs(ratio - 0.01) < 1e-3


def test_plain_arrays_and_lower_rates_decode(run):
  codec = load(run)
  tokens = codec.encode(np.sin(np.arange(8000) * 0.1), 16000)
  plain = codec.decode(np.asarray(tokens)[:, :2])
  assert plain.shape == (8000,)
  factor = 10 ** (tokens.gain_db / 20)
  np.testing.assert_allclose(codec.decode(tokens, kbps=1.5) * factor, plain, atol=1e-6)


def test_silence_is_harmless(run):
  codec = load(run)
  assert np.isfinite(codec.decode(codec.encode(np.zeros(4000), 16000))).all()
  assert level_gain(np.zeros(4000)) == 0


def _fails(args, message, capsys):
  capsys.readouterr()
  assert cli.main([str(a) for a in args]) == 2
  err = capsys.readouterr().err.strip().splitlines()
  assert len(err) == 1 and err[0].startswith('error: ') and message in err[0], err


def test_mistakes_get_one_line_and_touch_nothing(run, speech, tmp_path, capsys):
  tokens = tmp_path / 'a.afc'
  cli.main(['encode', str(speech), str(tokens), '--checkpoint', str(run), '--kbps', '1.5'])
  good = tokens.read_bytes()
  text = tmp_path / 'text.wav'
  text.write_text('not audio')
  empty = tmp_path / 'empty.wav'
  soundfile.write(empty, np.zeros(0), 16000)
  broken = tmp_path / 'broken.afc'
  broken.write_bytes(good[:-3])
  out = tmp_path / 'out.wav'
  out.write_text('precious')
  c = ['--checkpoint', run]
  _fails(['encode', tmp_path / 'none.wav', tokens, *c], 'no such file', capsys)
  _fails(['encode', text, tokens, *c], 'not a readable audio file', capsys)
  _fails(['encode', empty, tokens, *c], 'no samples', capsys)
  _fails(['encode', speech, tokens, *c, '--kbps', '2'], 'not a rate', capsys)
  _fails(['encode', speech, tmp_path / 'no' / 'x.afc', *c], 'no such folder', capsys)
  _fails(['encode', speech, tokens, '--checkpoint', tmp_path / 'no'], 'no such folder', capsys)
  _fails(['encode', speech, tokens, '--checkpoint', tmp_path], 'workdir of a training run', capsys)
  _fails(['encode', speech, speech, *c], 'same file', capsys)
  _fails(['decode', broken, out, *c], 'truncated', capsys)
  _fails(['decode', text, out, *c], 'token file', capsys)
  _fails(['decode', tokens, tmp_path / 'out.xyz', *c], 'cannot write', capsys)
  _fails(['decode', tokens, out, *c, '--kbps', '6'], 'kbps', capsys)
  assert tokens.read_bytes() == good and out.read_text() == 'precious'


def test_tokens_of_another_model_are_refused(run):
  codec = load(run)
  tokens = codec.encode(np.sin(np.arange(8000) * 0.1), 16000)
  codec.fingerprint = b'otherone'
  with pytest.raises(UserError, match='decode with the checkpoint'):
    codec.decode(tokens)
  tokens = dataclasses.replace(tokens, fingerprint=bytes.fromhex('77190692d28a413d'))
  with pytest.raises(UserError, match='release 0.1.0; that release decodes them'):
    codec.decode(tokens)
