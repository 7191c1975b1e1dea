"""Analysis: probes, entropies and rate-distortion against references that are computed another way."""

import functools
import json
import math

import jax
import numpy as np
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax import api
from affectcodec_jax.analysis import codes, leakage, probes, rate_distortion, stages
from affectcodec_jax.api import Pretrained
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.evaluation import usage as usage_lib
from affectcodec_jax.evaluation.statistics import Speakers
from affectcodec_jax.inference import weights
from affectcodec_jax.models import blocks, fsq
from affectcodec_jax.models.codec import init_params
from configs import base
from tests.conftest import tiny

LEVELS = {'emotion': (2, 2, 2), 'acoustic': (4, 3, 4)}


def _clip(rng, speaker, frames=60, emotion=-1, mel=None, name='a', stages=2):
  size = math.prod(sum(LEVELS.values(), ()))
  index = rng.integers(size, size=(frames, stages))
  return codes.Clip(index, mel, emotion, speaker, '', f'{speaker}/{name}')


def test_digits_are_those_of_fsq():
  rng = np.random.default_rng(0)
  index = _clip(rng, 'a', 500).codes
  digits = blocks.block_digits(index, LEVELS)
  both = np.concatenate([digits['emotion'], digits['acoustic']], axis=-1)
  np.testing.assert_array_equal(fsq.digits_to_index(both, sum(LEVELS.values(), ())), index)
  emotion, acoustic = fsq.split_index(index, LEVELS['emotion'])
  parts = blocks.split_blocks(index, LEVELS)
  np.testing.assert_array_equal(parts['emotion'], emotion)
  np.testing.assert_array_equal(parts['acoustic'], acoustic)


def test_mels_are_at_the_codecs_frames():
  """A click moves the mel frames around it and no others: 60 ms reach one frame to each side."""
  noise = 0.01 * np.random.default_rng(0).normal(size=20 * 320 + 7).astype(np.float32)
  click = noise.copy()
  click[10 * 320 + 160] += 0.05
  a, b = codes.frame_mels(noise), codes.frame_mels(click)
  assert a.shape == (21, 80)
  moved = np.abs(a - a.mean(0) - b + b.mean(0)).max(axis=1)
  assert set(np.argsort(moved)[-3:]) == {9, 10, 11}


def test_ridge_is_least_squares():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(300, 7)), rng.normal(size=(300, 4))
  weights = probes.ridge(probes.moments(x, y), strength=0.0)
  with_one = np.concatenate([np.ones((300, 1)), x], axis=1)
  np.testing.assert_allclose(weights, np.linalg.lstsq(with_one, y)[0], atol=1e-10)
  error = ((with_one @ weights - y) ** 2).sum(axis=0)
  np.testing.assert_allclose(probes.squared_error(weights, probes.moments(x, y)), error)
  first = probes.ridge(probes.moments(x, y).first(3), strength=0.0)
  np.testing.assert_allclose(first, np.linalg.lstsq(with_one[:, :4], y)[0], atol=1e-10)


def test_two_fold_r_squared_is_that_of_scikit_learn():
  sklearn = pytest.importorskip('sklearn.linear_model')
  metrics = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(0)
  frames = [(rng.normal(size=(n, 5)), rng.normal(size=(n, 3)) * [1, 2, 3] + i)
            for i, n in enumerate((80, 50, 70, 90, 60, 40))]
  half = [0, 1, 1, 0, 1, 0]
  fold = probes.two_fold([probes.moments(*f) for f in frames], half)
  values, bands = [], []
  for test in (0, 1):
    (x, y), (xt, yt) = (tuple(np.concatenate(part) for part in zip(
        *[f for f, h in zip(frames, half) if (h == test) == held_out])) for held_out in (False, True))
    ridge = sklearn.Ridge(alpha=probes.RIDGE * len(x), solver='cholesky').fit(x, y)
    values.append(metrics.r2_score(yt, ridge.predict(xt), multioutput='variance_weighted'))
    bands.append(metrics.r2_score(yt, ridge.predict(xt), multioutput='raw_values'))
  assert abs(fold.r_squared() - np.mean(values)) < 1e-9
  np.testing.assert_allclose(fold.r_squared(bands=True), np.mean(bands, axis=0), atol=1e-9)
  interval = fold.interval()
  assert interval['low'] <= interval['mean'] <= interval['high']


def test_leakage_is_one_for_a_linear_target_and_none_for_noise():
  rng = np.random.default_rng(0)
  linear, noise = [], []
  for speaker in 'abcdef':
    clip = _clip(rng, speaker, 400)
    x = leakage.design(blocks.block_digits(clip.codes, LEVELS)['emotion'], LEVELS['emotion'])
    assert set(np.unique(x)) == {-1, 1} and x.shape == (400, 6)
    linear.append(clip._replace(mel=x @ np.arange(24.0).reshape(6, 4) + 1))
    noise.append(clip._replace(mel=rng.normal(size=(400, 4))))
  result = leakage.leakage(linear, LEVELS)
  assert result['emotion']['mean'] > 0.9999 and result['frames'] == 2400
  assert 0.05 < result['stages'][0]['mean'] < 0.95  # the first stage knows a part
  assert abs(result['shuffled']['mean']) < 0.02 and abs(result['acoustic']['mean']) < 0.05
  assert abs(leakage.leakage(noise, LEVELS)['emotion']['mean']) < 0.02
  with pytest.raises(UserError, match='3 speakers'):
    leakage.leakage(linear[:3], LEVELS)


def test_more_than_two_levels_are_a_column_each():
  digits = np.array([[[2, 0]], [[0, 1]]])  # two frames, one stage
  np.testing.assert_array_equal(leakage.design(digits, (3, 2)), [[0, 0, 1, -1], [1, 0, 0, 1]])


def test_halves_divide_every_corpus_and_do_not_depend_on_order():
  rng = np.random.default_rng(0)
  clips = [_clip(rng, s)._replace(corpus=s[0]) for s in ('x1', 'x2', 'x3', 'x4', 'y1', 'y2')]
  half = leakage.halves(clips)
  assert half == leakage.halves(clips[::-1])
  for corpus in 'xy':
    assert np.mean([h for s, h in half.items() if s[0] == corpus]) == 0.5


def test_entropy_of_uniform_and_of_constant_codes():
  assert abs(usage_lib.entropy(np.full(8, 5)) - 3) < 1e-12
  assert usage_lib.entropy([0, 9, 0]) == 0
  rng = np.random.default_rng(0)
  plain, corrected = zip(*[(usage_lib.entropy(n), usage_lib.entropy(n, True)) for n in (
      np.bincount(rng.integers(64, size=200), minlength=64) for _ in range(200))])
  assert abs(np.mean(corrected) - 6) < 0.3 * abs(np.mean(plain) - 6)  # Miller-Madow: most of the bias


def test_conditional_entropy_of_a_markov_chain():
  chain = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.25, 0.75]])
  values, vectors = np.linalg.eig(chain.T)
  stationary = np.real(vectors[:, np.argmax(np.real(values))])
  stationary /= stationary.sum()
  expected = -sum(p * q * math.log2(q) for p, row in zip(stationary, chain) for q in row if q)
  rng = np.random.default_rng(0)
  draws, states = rng.random(100_000), [0]
  edges = np.cumsum(chain, axis=1)
  for u in draws:
    states.append(int(np.searchsorted(edges[states[-1]], u, side='right')))
  measured = usage_lib.conditional_entropy(np.array_split(np.array(states), 50), 3)
  assert abs(measured - expected) < 0.01


def test_usage_of_a_uniform_and_a_stuck_stage():
  rng = np.random.default_rng(0)
  files = [_clip(rng, 'a', 20_000, stages=2).codes for _ in range(2)]
  for c in files:
    c[:, 1] = 5  # the second stage says the same always
  result = usage_lib.usage(files, LEVELS)
  first, second = result['stages']
  assert first['emotion']['used'] == 8 and first['acoustic']['used'] == first['acoustic']['possible'] == 48
  assert abs(first['emotion']['bits'] - 3) < 0.01 and abs(first['emotion']['conditional_bits'] - 3) < 0.01
  assert abs(first['acoustic']['bits'] - math.log2(48)) < 0.01
  np.testing.assert_allclose(first['acoustic']['dimension_bits'], np.log2([4, 3, 4]), atol=0.01)
  assert second['emotion']['used'] == 1 and second['acoustic']['bits'] == 0
  rates = result['bits_per_second']
  assert abs(rates['nominal'] - 2 * 50 * (3 + math.log2(48))) < 1e-9
  assert abs(rates['ideal'] - rates['nominal'] / 2) < 1


def _labelled(rng, speakers, predictable):
  """Clips of two emotions; where `predictable`, the first emotion digit of stage 2 says which."""
  clips = []
  for speaker in speakers:
    for i in range(12):
      clip = _clip(rng, speaker, 40, emotion=i % 2, name=str(i))
      if predictable:
        clip.codes[:, 1] = clip.codes[:, 1] // 2 * 2 + (rng.random(40) < 0.2 + 0.6 * (i % 2))
      clips.append(clip)
  return clips


def test_stage_probes_find_what_is_there_where_it_is():
  pytest.importorskip('sklearn')
  rng = np.random.default_rng(0)
  result = stages.stage_probes(_labelled(rng, 'abcdef', True), _labelled(rng, 'uvwxyz', True), LEVELS)
  emotion = result['emotion']
  assert emotion['chance'] == 0.5 and result['speaker']['chance'] == 1 / 6
  for kind in ('emotion', 'emotion_joint'):
    assert emotion[kind]['alone'][1]['mean'] > 0.9 and emotion[kind]['up_to'][1]['mean'] > 0.9
    assert abs(emotion[kind]['alone'][0]['mean'] - 0.5) < 0.25
  assert abs(emotion['acoustic']['up_to'][1]['mean'] - 0.5) < 0.25
  assert result['speaker']['acoustic']['up_to'][1]['mean'] < 0.5  # codes know nothing of the speaker


def test_a_linear_probe_is_at_chance_for_random_labels():
  pytest.importorskip('sklearn')
  rng = np.random.default_rng(0)
  x, labels = rng.normal(size=(800, 10)), rng.integers(4, size=800)
  predicted = probes.logistic(x[:400], labels[:400], x[400:])
  score = probes.recall_interval(labels[400:], predicted, np.arange(400) // 20)
  assert score['low'] < 0.25 < score['high'] and score['high'] - score['low'] < 0.2


def test_recall_counts_every_class_alike():
  truth, predicted = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 0])
  assert abs(probes.recall_interval(truth, predicted, np.arange(5))['mean'] - 0.375) < 1e-12
  assert abs(probes.recall_over_classes(truth, predicted)['mean'] - 0.375) < 1e-12


@pytest.mark.parametrize('count', [6, 11, 30])
def test_intervals_cover_the_truth(count):
  """Speakers differ in how well they are recognised: 95 % intervals over them hold the mean of all in 95 %.

  The standard error of a share of 2000 simulations is 0.005; skills that are uniform, not normal, and
  percentiles of 4000 draws add as much again: three times both is 0.021. Plain percentiles would cover
  0.87, 0.91 and 0.936.
  """
  rng = np.random.default_rng(0)
  names = np.repeat(np.arange(count), 20)
  truth = np.tile(np.arange(20) % 2, count)
  skill = rng.uniform(0.3, 0.9, size=(2000, count, 1))
  right = rng.random((2000, count, 20)) < skill  # their mean over all speakers there are is 0.6
  predicted = np.where(right.reshape(2000, 20 * count), truth, 1 - truth)
  speakers = Speakers([{'speaker': str(n), 'file': ''} for n in names], draws=4000)
  ends = [speakers.interval(speakers.recall(truth, p, macro=True)) for p in predicted]
  covered = np.mean([s['low'] <= 0.6 <= s['high'] for s in ends])
  assert abs(covered - 0.95) < 0.021, covered


def test_fewer_than_six_speakers_have_no_interval():
  rows = [{'speaker': s, 'file': ''} for s in 'abcdee']
  assert Speakers(rows).ratio([1.0, 2, 3, 4, 5, 6]) == {'mean': 3.5, 'low': None, 'high': None}
  six = Speakers([*rows, {'speaker': 'f', 'file': ''}])
  assert six.ratio([1.0, 2, 3, 4, 5, 6, 7])['low'] < 4
  assert six.ratio([1.0, 2, 3, 4, 5, 6, np.nan])['low'] is None  # the sixth speaker has no score


def test_stage_probes_refuse_what_cannot_be_predicted():
  pytest.importorskip('sklearn')
  rng = np.random.default_rng(0)
  clips = _labelled(rng, 'ab', False)
  with pytest.raises(UserError, match='in both splits'):
    stages.stage_probes(clips, clips, LEVELS)
  unlabelled = [c._replace(emotion=-1) for c in _labelled(rng, 'cd', False)]
  with pytest.raises(UserError, match='known emotion'):
    stages.stage_probes(clips, unlabelled, LEVELS)
  with pytest.raises(UserError, match='two files'):
    stages.stage_probes(clips, _labelled(rng, 'cd', False)[::12][:2] + _labelled(rng, 'e', False), LEVELS)


def test_feature_error_falls_with_bits():
  """Features are four signs a frame: two bits cannot say them, six can."""
  model = tiny(base.get_config()).model
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(4, 12)).astype(np.float32)
  files = [np.sign(rng.normal(size=(40, 4))).astype(np.float32) @ mix for _ in range(24)]
  test = rate_distortion.windows(files[16:], 10)
  assert test.shape == (32, 10, 12)
  errors = [rate_distortion.train_cell(model, levels, 2, files[:16], test, steps=120, batch_size=8, seed=0)
            for levels in ((2,), (2, 2, 2))]
  assert errors[1] < 0.8 * errors[0] and errors[0] < 1, errors
  with pytest.raises(UserError, match='no file is'):
    rate_distortion.windows(files, 41)


def test_batches_are_the_same_for_every_cell():
  files = [np.random.default_rng(i).normal(size=(n, 3)) for i, n in enumerate((9, 30, 20))]
  first, again = (list(rate_distortion.batches(files, 4, 10, 3, seed=1)) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  assert np.shape(first) == (3, 4, 10, 3)
  assert not np.isin(first, files[0]).any()  # too short


def test_hull_and_knee():
  bits, errors = [2, 4, 4, 6, 8, 10], [1.0, 0.4, 0.7, 0.35, 0.2, 0.25]
  assert rate_distortion.lower_hull(bits, errors) == [0, 1, 4]
  assert rate_distortion.knee(bits, errors) == 1
  assert rate_distortion.knee([2], [1.0]) == 0
  assert rate_distortion.bits_per_frame((2, 2, 2), 2) == 6


@pytest.fixture(scope='module')
def codec():
  """An untrained codec of 3 stages."""
  config = tiny(base.get_config())
  frozen = {'teacher': weights.load_teacher(config)}
  params = jax.jit(functools.partial(init_params, config))(jax.random.PRNGKey(0))[0]
  return Pretrained(config, params, frozen, step=0)


@pytest.fixture(scope='module')
def manifest(tmp_path_factory):
  """Half seconds of synthetic speech, 5 speakers to train and 5 to test."""
  data = tmp_path_factory.mktemp('data')
  source, rows = SyntheticSource(20, seed=0), []
  for i in range(20):
    soundfile.write(data / f'{i}.wav', source[i]['audio'][:8000], 16000)
    rows.append({'path': f'{i}.wav', 'split': ('train', 'test')[i // 10], 'speaker': str(i // 2),
                 'emotion': ('sad', 'angry')[i % 2]})
  (data / 'm.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return str(data / 'm.jsonl')


def test_commands_write_results_and_a_picture(codec, manifest, tmp_path, capsys, monkeypatch):
  pytest.importorskip('sklearn')
  pytest.importorskip('matplotlib')
  monkeypatch.setattr(api, 'load', lambda path: codec)
  results = {}
  for command in ('leakage', 'stages', 'usage'):
    out = tmp_path / command
    assert cli.main(['analyse', command, '--checkpoint', 'run', '--data', manifest, '--out', str(out)]) == 0
    assert (out / f'{command}.png').read_bytes()[:4] == b'\x89PNG'
    results[command] = json.loads((out / 'results.json').read_text())
    assert 'emotion' in capsys.readouterr().out
  (of_run,) = results['leakage']['runs'].values()
  assert of_run['files'] == 10 and of_run['speakers'] == 5 and len(of_run['bands']) == 80
  assert len(results['stages']['emotion']['acoustic']['alone']) == 3
  assert results['usage']['frames'] == 250
  assert results['usage']['bits_per_second']['nominal'] == 3 * 15 * 50


def test_mistakes_get_one_line(codec, manifest, tmp_path, capsys, monkeypatch):
  pytest.importorskip('matplotlib')
  monkeypatch.setattr(api, 'load', lambda path: codec)

  def fails(args, message):
    assert cli.main(['analyse', *args, '--data', manifest, '--out', str(tmp_path)]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith('error: ') and message in err, err

  fails(['leakage', '--checkpoint', 'run', 'run'], 'twice')
  fails(['leakage', '--checkpoint', 'run', '--limit', '2'], '2 speakers')
  fails(['usage', '--checkpoint', 'run', '--limit', '-1'], '--limit')
  fails(['usage', '--checkpoint', 'run', '--split', 'none'], "split 'none'")
  fails(['rate_distortion', '--levels', '1'], '--levels')
  fails(['rate_distortion', '--config.no.field=1'], 'configs/base.py')
  config = base.get_config().model
  config.quantizer = 'rvq'
  with pytest.raises(UserError, match='no emotion digits'):
    codes.emotion_blocks(config, 'run')
  assert list(blocks.block_levels(config)) == ['code']
