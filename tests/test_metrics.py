"""Metrics: as their packages compute them, and in the right order for known damage."""

import warnings

import numpy as np
import pytest

from affectcodec_jax import losses
from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.common import packaged
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.evaluation import metrics, prosody, words

ITEM = {'text': '', 'lang': ''}
warnings.filterwarnings('ignore', message='pkg_resources')


@pytest.fixture(scope='module')
def speech():
  """Two seconds of the package's own speech-like sound."""
  return at_codec_level(SyntheticSource(8, seed=0)[3]['audio'])[:32000]


def make(name):
  """The metric, or a skipped test where its package is not installed."""
  try:
    metrics.version(metrics.METRICS[name])
  except UserError as e:
    pytest.skip(str(e))
  metric = metrics.METRICS[name]
  function = metric.make(*(packaged.FOLDER / f for f in metric.files))
  return lambda a, b, item=ITEM: function(a, b, item)


def noisy(x, db):
  noise = np.random.default_rng(0).normal(size=len(x))
  return (x + 10 ** (db / 20) * np.std(x) * noise).astype(np.float32)


def low_pass(x, hz):
  spectrum = np.fft.rfft(x)
  spectrum[np.fft.rfftfreq(len(x), 1 / 16000) > hz] = 0
  return np.fft.irfft(spectrum, len(x)).astype(np.float32)


def flattened(x, keep):
  """The same speech with `keep` of its pitch movement (in log F0), by the WORLD vocoder."""
  world = pytest.importorskip('pyworld')
  x64 = x.astype(np.float64)
  f0 = prosody.pitch(x)
  times = np.arange(len(f0)) * 0.005
  mean = np.exp(np.mean(np.log(f0[f0 > 0])))
  moved = np.where(f0 > 0, mean * (np.maximum(f0, 1) / mean) ** keep, 0)
  envelope, noise = world.cheaptrick(x64, f0, times, 16000), world.d4c(x64, f0, times, 16000)
  out = world.synthesize(moved, envelope, noise, 16000)
  return np.pad(out, (0, len(x)))[:len(x)].astype(np.float32)


def test_the_judge_on_whisper_hears_voices_and_not_their_level(speech):
  """Probabilities, the same at another level but for rounding, others of another voice."""
  judge = make('whisper_svm')
  posterior = np.array(judge(None, speech)['whisper_svm'])
  assert posterior.shape == (len(EMOTIONS),) and abs(posterior.sum() - 1) < 1e-6 and (posterior >= 0).all()
  np.testing.assert_allclose(judge(None, 0.1 * speech)['whisper_svm'], posterior, atol=1e-2)
  other = SyntheticSource(8, seed=0)[0]['audio'][:32000]
  assert np.abs(judge(None, other)['whisper_svm'] - posterior).max() > 0.05


# Sense +1: more is better.
NOISE_AND_BAND = {'spectral': {'mel': -1, 'stft': -1, 'si_sdr': 1}, 'pesq': {'pesq': 1},
                  'stoi': {'stoi': 1, 'estoi': 1}, 'visqol': {'visqol': 1},
                  'resemblyzer': {'speaker_resemblyzer': 1}, 'voicefilter': {'speaker_voicefilter': 1}}


@pytest.mark.parametrize('name', NOISE_AND_BAND)
def test_noise_and_lost_bands_score_worse(name, speech):
  """Each step is worse than the one before: the clip, noise at 30, 15 and 0 dB; 4 kHz, 1 kHz left."""
  score = make(name)
  orders = ([speech, noisy(speech, -30), noisy(speech, -15), noisy(speech, 0)],
            [speech, low_pass(speech, 4000), low_pass(speech, 1000)])
  for order in orders:
    values = [score(speech, y) for y in order]
    for key, sense in NOISE_AND_BAND[name].items():
      worse = np.diff([sense * v[key] for v in values])
      assert (worse < 0).all(), (key, [v[key] for v in values])


def test_flattened_pitch_is_seen_by_pitch_and_only_by_it(speech):
  """Half and none of the movement left: correlation falls, the error grows with it; levels stay."""
  pitch, energy = make('pitch'), make('energy')
  scores = [pitch(speech, flattened(speech, keep)) for keep in (1.0, 0.5, 0.0)]
  assert scores[0]['f0_correlation'] > 0.95 and scores[2]['f0_correlation'] < 0.5
  errors = [s['f0_rmse'] for s in scores]
  spread = 1200 * np.std(np.log2(prosody.pitch(speech)[prosody.pitch(speech) > 0]))
  assert errors[0] < 0.4 * spread < errors[1] < errors[2]
  # Without any movement the error is the movement itself, up to frames where voicing is found differently.
  assert 0.6 * spread < errors[2] < 1.4 * spread
  levels = [energy(speech, flattened(speech, keep))['energy_correlation'] for keep in (1.0, 0.0)]
  assert abs(levels[0] - levels[1]) < 0.02


def test_levels_and_their_movement_are_seen(speech):
  energy = make('energy')
  assert energy(speech, 0.5 * speech)['energy_rmse'] == pytest.approx(20 * np.log10(2), abs=1e-3)
  assert energy(speech, 0.5 * speech)['energy_correlation'] == pytest.approx(1)
  even = np.sign(speech) * 0.05  # one loudness all along
  assert energy(speech, even)['energy_correlation'] < 0.3


def test_pitch_figures_by_hand():
  a = np.array([0, 100, 100, 200, 0] * 5, float)
  b = np.array([0, 200, 100, 200, 100] * 5, float)
  result = prosody.compare_pitch(a, b)
  assert result['voicing_error'] == pytest.approx(1 / 5)
  assert result['f0_rmse'] == pytest.approx(1200 / np.sqrt(3))  # one of three frames an octave off
  assert prosody.compare_pitch(a[:5], b[:5])['f0_rmse'] is None  # three frames tell nothing
  assert prosody.correlation(np.arange(4.0), np.ones(4)) == 0.0
  assert prosody.correlation(np.ones(4), np.ones(4)) is None


def test_figures_are_the_packages_own(speech):
  """Direct calls of the packages: equal to rounding, which differs with the arrays' alignment."""
  damaged = noisy(speech, -20)
  pesq, pystoi = pytest.importorskip('pesq'), pytest.importorskip('pystoi')
  direct = pesq.pesq(16000, speech, damaged, 'wb')
  assert make('pesq')(speech, damaged)['pesq'] == pytest.approx(direct, rel=1e-5)
  scores = make('stoi')(speech, damaged)
  assert scores['stoi'] == pytest.approx(pystoi.stoi(speech, damaged, 16000), rel=1e-9)
  assert scores['estoi'] == pytest.approx(pystoi.stoi(speech, damaged, 16000, extended=True), rel=1e-9)


def test_visqol_is_the_packages_own(speech, tmp_path):
  """Through files, as its command line does: 16-bit samples differ by less than 0.05 of a MOS."""
  visqol = pytest.importorskip('visqol')
  import soundfile
  damaged = noisy(speech, -35)
  paths = [str(tmp_path / n) for n in ('a.wav', 'b.wav')]
  for path, audio in zip(paths, (speech, damaged)):
    soundfile.write(path, audio, 16000)
  api = visqol.VisqolApi()
  api.create(mode='speech')
  assert make('visqol')(speech, damaged)['visqol'] == pytest.approx(api.measure(*paths).moslqo, abs=0.05)


def test_egemaps_are_the_packages_own(speech):
  opensmile = pytest.importorskip('opensmile')
  from affectcodec_jax.audio import level_gain
  smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
  damaged = noisy(speech, -20)
  direct = smile.process_signal(damaged * 10 ** (level_gain(damaged) / 20), 16000).to_numpy()[0]
  np.testing.assert_allclose(make('egemaps')(speech, damaged)['egemaps'], direct, rtol=1e-5)


def test_speaker_similarity_is_the_cosine_of_the_packages_embeddings(speech):
  resemblyzer = pytest.importorskip('resemblyzer')
  encoder = resemblyzer.VoiceEncoder('cpu', verbose=False)
  other = at_codec_level(SyntheticSource(8, seed=0)[5]['audio'])[:32000]
  a, b = encoder.embed_utterance(speech), encoder.embed_utterance(other)  # of length 1
  assert make('resemblyzer')(speech, other)['speaker_resemblyzer'] == pytest.approx(float(a @ b), abs=1e-5)


def test_mel_distance_is_that_of_training(speech):
  """Framing at the ends differs (centred here, inside there): within 5 %."""
  damaged = noisy(speech, -20)
  own = make('spectral')(speech, damaged)['mel']
  targets = [losses.mel_targets(x[None]) for x in (speech, damaged)]
  assert own == pytest.approx(float(losses.mel_distance(*targets)[0]), rel=0.05)


def test_si_sdr_by_hand():
  rng = np.random.default_rng(0)
  x = rng.normal(size=16000)
  noise = rng.normal(size=16000)
  noise -= noise.mean() + (noise @ (x - x.mean())) / ((x - x.mean()) @ (x - x.mean())) * (x - x.mean())
  y = 3 * x + 3 * noise * np.linalg.norm(x - x.mean()) / np.linalg.norm(noise) / 10
  assert metrics.si_sdr(x, y) == pytest.approx(20, abs=1e-6)  # whatever the scale
  assert metrics.si_sdr(np.zeros(100), x[:100]) is None


def test_word_errors_by_hand():
  jiwer = pytest.importorskip('jiwer')
  assert words.plain("Kids are — talking, by the DOOR's!") == "kids are talking by the door's"
  assert words.count_errors(jiwer, 'a b c d', 'a x c d e') == {'words': 4, 'word_errors': 2}
  assert words.count_errors(jiwer, 'a b', '') == {'words': 2, 'word_errors': 2}


def test_words_are_recognised_only_where_they_can_be_judged(speech):
  whisper = make('whisper')
  assert whisper(speech, speech, {'text': 'sieben', 'lang': 'de'})['words'] is None
  assert whisper(speech, speech, {'text': 'two words', 'lang': 'en'})['words'] == 2


def test_distillmos_scores_damage(speech):
  score = make('distillmos')
  scores = [score(speech, low_pass(speech, hz))['distillmos'] for hz in (1000, 4000)]
  assert scores[0] < scores[1]


def test_an_absent_package_is_reported_by_its_name(monkeypatch):
  absent = metrics.Metric(None, ('no-such-package',))
  with pytest.raises(UserError, match='no-such-package is not installed; requirements-eval.txt'):
    metrics.version(absent)
