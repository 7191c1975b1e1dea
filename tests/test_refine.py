"""Codes found by a search while encoding: nearer to the recording, and nothing else is another."""

import librosa
import numpy as np
import pytest
import soundfile as sf

import affectcodec_jax
from affectcodec_jax import __main__ as cli
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.inference.pieces import Inference
from affectcodec_jax.inference.refine import make_refine
from affectcodec_jax.models import fsq
from affectcodec_jax.models.context import decoder_context
from tests.test_inference import networks, sound


def log_mel(audio):
  """Another mel spectrogram than the search's own."""
  mel = librosa.feature.melspectrogram(y=audio, sr=16000, n_fft=400, hop_length=160, n_mels=64)
  return np.log10(np.maximum(mel, 1e-4))


@pytest.fixture(scope='module')
def codec():
  return affectcodec_jax.load()


def test_the_packaged_codec_comes_nearer_at_the_same_emotion_digits(codec):
  audio = SyntheticSource(1, seed=3)[0]['audio'][:16_000]
  plain, refined = (codec.encode(audio, 16000, kbps=1.5, refine=steps) for steps in (0, 12))
  assert refined.shape == plain.shape == (50, 2)
  assert (refined.num_samples, refined.gain_db) == (plain.num_samples, plain.gain_db)
  model = codec.config.model
  levels = (*model.emotion_levels, *model.acoustic_levels)
  before, after = (np.asarray(fsq.index_to_digits(t.codes, levels)) for t in (plain, refined))
  emotion = len(model.emotion_levels)
  np.testing.assert_array_equal(after[..., :emotion], before[..., :emotion])
  assert 0.05 < np.mean(after[..., emotion:] != before[..., emotion:])
  target, *decoded = map(log_mel, (audio, codec.decode(plain), codec.decode(refined)))
  far, near = (np.mean(np.abs(d - target)) for d in decoded)
  assert near < 0.95 * far


@pytest.mark.usefixtures('one_mel_scale')
def test_a_batch_of_unequal_lengths_is_refined_as_each_alone():
  """Alone, a batch is filled with copies. Rounding may carry a value over a boundary of its code."""
  config, params, frozen = networks('lite')
  run = Inference(config, frozen, chunk=50)
  recordings = [sound(s, i) for i, s in enumerate((0.02, 1.2))]
  together = run.encode(params, frozen, recordings, batch=2, refine_steps=3, stages=2)
  plain = run.encode(params, frozen, recordings, stages=2)
  for recording, codes, before in zip(recordings, together, plain):
    alone, = run.encode(params, frozen, [recording], batch=2, refine_steps=3, stages=2)
    assert codes.shape == before.shape == (-(-len(recording) // 320), 2)
    assert np.mean(codes != alone) <= 0.02
  assert np.any(together[1] != plain[1])


def test_codecs_without_a_source_have_the_search_too():
  """Traced, not run: a compilation of the DAC-style decoder's gradient would take most of a minute."""
  config, params, _ = networks('dac')
  config = config.copy_and_resolve_references()
  del config.loss.mel_floor  # as a codec from before this field
  context, model = decoder_context(config.model), config.model
  u = np.zeros((2, 50 + 2 * context, model.emotion_dim + model.acoustic_dim), np.float32)
  first, last = np.full(2, context, np.int32), np.full(2, context + 49, np.int32)
  codes = make_refine(config).eval_shape(params, u, np.zeros((2, 50 * 320), np.float32), first, last, 3,
                                         stages=2)
  assert codes.shape == (2, 50, 2) and codes.dtype == np.int32


def test_silence_and_what_is_no_number_of_steps(codec):
  tokens = codec.encode(np.zeros(320, np.float32), 16000, 1.5, refine=2)
  assert np.isfinite(codec.decode(tokens)).all()
  for steps in (-1, 1.5, True, 100_000, None):
    with pytest.raises(UserError, match='steps'):
      codec.encode(np.zeros(320, np.float32), 16000, 1.5, refine=steps)


def test_commands_refuse_it_in_one_line(tmp_path, capsys):
  (tmp_path / 'in').mkdir()
  sf.write(tmp_path / 'in' / 'a.wav', sound(0.5), 16_000)
  for words in (['encode', tmp_path / 'in' / 'a.wav', tmp_path / 'a.afc'],
                ['encode', tmp_path / 'in', tmp_path / 'out'],
                ['evaluate', '--data', tmp_path / 'in', '--out', tmp_path / 'scores']):
    assert cli.main([*map(str, words), '--refine', '-1']) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith('error: refine -1: a whole number of steps')
  assert [p.name for p in tmp_path.iterdir()] == ['in']
