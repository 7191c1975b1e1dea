"""Emotion from tokens alone, and transplants of the emotion block."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax import api
from affectcodec_jax.analysis import decoded_emotion, train_token_emotion, transplant
from affectcodec_jax.analysis.codes import Clip, encode_clip, read_items
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.emotion import judges, teachers
from affectcodec_jax.inference import weights
from affectcodec_jax.models.codec import Codec, init_params, make_codec
from affectcodec_jax.models.params import save_params
from affectcodec_jax.tokens import emotion as token_emotion
from affectcodec_jax.tokens.afc import Tokens, write_tokens
from configs import base
from tests.conftest import tiny

ROOT = pathlib.Path(__file__).parent.parent
LEVELS = {'emotion': (2, 2, 2), 'acoustic': (4, 4, 4, 4, 4, 4)}
FINGERPRINT = b'thecodec'


def _codes(rng, frames, stages=2):
  return rng.integers(2 ** 15, size=(frames, stages)).astype(np.int32)


def _predictor(rng, stages=(1, 2, 4), kind='emotion'):
  """With random weights."""
  size = {m: len(token_emotion.features(_codes(rng, 2, m), LEVELS, kind)) for m in stages}
  made = {m: (kind, rng.normal(size=(1 + n, 8)).astype(np.float32)) for m, n in size.items()}
  return token_emotion.Predictor(FINGERPRINT, LEVELS, made)


def test_features_are_counts_of_their_own_block():
  """Against counting one by one; other bits of the other block change nothing."""
  rng = np.random.default_rng(0)
  codes = _codes(rng, 30)
  emotion, acoustic = (token_emotion.features(codes, LEVELS, kind) for kind in ('emotion', 'acoustic'))
  np.testing.assert_array_equal(token_emotion.features(codes, LEVELS, 'both'),
                                np.concatenate([emotion, acoustic]))
  low, high = codes & 7, codes >> 3
  other = _codes(rng, 30)
  np.testing.assert_array_equal(
      token_emotion.features(low | (other >> 3 << 3), LEVELS, 'emotion'), emotion)
  np.testing.assert_array_equal(
      token_emotion.features((other & 7) | (high << 3), LEVELS, 'acoustic'), acoustic)
  counted = np.zeros((2, 8)), np.zeros((2, 8, 8)), np.zeros((6, 2, 4)), np.zeros((6, 2))
  for k in range(2):
    for t in range(30):
      counted[0][k, low[t, k]] += 1 / 30
      for i in range(6):
        counted[2][i, k, high[t, k] >> 2 * i & 3] += 1 / 30
      if t:
        counted[1][k, low[t - 1, k], low[t, k]] += 1 / 29
        for i in range(6):
          counted[3][i, k] += abs((high[t, k] >> 2 * i & 3) - (high[t - 1, k] >> 2 * i & 3)) / 29
  np.testing.assert_allclose(emotion, np.concatenate([c.ravel() for c in counted[:2]]))
  by_dimension = [np.concatenate([levels.ravel(), steps]) for levels, steps in zip(*counted[2:])]
  np.testing.assert_allclose(acoustic, np.concatenate(by_dimension))
  assert np.isfinite(token_emotion.features(codes[:1], LEVELS, 'both')).all()


def test_valence_arousal_dominance_of_one_emotion_is_the_words_own():
  certain = np.eye(8)[EMOTIONS.index('happy')]
  assert token_emotion.valence_arousal_dominance(certain) == {
      'valence': 8.47, 'arousal': 6.05, 'dominance': 7.21}
  even = token_emotion.valence_arousal_dominance((np.eye(8)[0] + np.eye(8)[3]) / 2)  # neutral and sad
  assert even['valence'] == pytest.approx((5.5 + 2.1) / 2)


@pytest.mark.parametrize('emotions', [(1, 4), (0, 2, 3, 7)])
def test_weights_are_those_of_the_regression_that_was_fitted(emotions):
  """Probabilities of inputs as they come, against scikit-learn's on standardised ones; float32: 1e-4."""
  pytest.importorskip('sklearn')
  from affectcodec_jax.analysis.probes import require_sklearn
  classifier, make_pipeline, scaler = require_sklearn()
  rng = np.random.default_rng(0)
  x, labels = rng.normal(1, 3, size=(200, 5)), rng.choice(emotions, size=200)
  x[:, 0] += labels
  x[:, 4] = 7.0  # never changes
  result = token_emotion.apply(train_token_emotion.fit(x, labels, 0.1), x)
  reference = make_pipeline(scaler(), classifier(C=0.1, class_weight='balanced', max_iter=1000))
  wanted = reference.fit(x, labels).predict_proba(x)
  np.testing.assert_allclose(result[:, list(emotions)], wanted, atol=1e-4)
  np.testing.assert_allclose(result.sum(axis=1), 1)


def test_what_was_learned_is_predicted_of_other_speakers():
  """Each emotion has a code that is commoner by a half; the acoustic block knows nothing."""
  pytest.importorskip('sklearn')
  rng = np.random.default_rng(0)

  def clip(emotion, speaker):
    codes = _codes(rng, 100)
    often = rng.random(codes.shape) < 0.5
    return Clip(np.where(often, codes >> 3 << 3 | emotion, codes), None, emotion, speaker, '', '')

  train, valid, test = ([clip(e, f'{s}{i}') for e in range(8) for i in range(6)] for s in 'abc')
  scores, fitted = train_token_emotion.fit_kinds(train, valid, test, LEVELS, 2)
  assert scores['emotion']['test']['mean'] > 0.9 and scores['acoustic']['test']['mean'] < 0.4
  assert scores['emotion_minus_acoustic']['low'] > 0.5
  assert scores['chosen'] == 'emotion' and fitted['emotion'].shape == (1 + 2 * 72, 8)
  with pytest.raises(UserError, match='speaker a0 is in splits train and valid'):
    train_token_emotion.check_speakers({'train': {'a0', 'a1'}, 'valid': {'a0'}})


def test_a_predictor_comes_back_from_its_file_and_leaves_odd_stages_out(tmp_path):
  rng = np.random.default_rng(0)
  predictor, path = _predictor(rng), tmp_path / 'p.safetensors'
  token_emotion.save(path, predictor)
  again = token_emotion.load(path)
  assert again.fingerprint == FINGERPRINT and list(again.weights) == [1, 2, 4]
  codes = _codes(rng, 40, 8)
  for stages, used in ((1, 1), (2, 2), (3, 2), (4, 4), (8, 4)):
    result = again.predict(Tokens(codes[:, :stages], 40 * 320, 0.0, FINGERPRINT))
    np.testing.assert_array_equal(result, predictor.probabilities(codes[:, :used]))
    assert result.sum() == pytest.approx(1)


def test_the_command_needs_no_model_and_mistakes_get_one_line(tmp_path, capsys, monkeypatch):
  rng = np.random.default_rng(0)
  tokens, path = tmp_path / 'in.afc', tmp_path / 'p.safetensors'
  write_tokens(tokens, Tokens(_codes(rng, 40, 3), 40 * 320, 0.0, FINGERPRINT))
  predictor = _predictor(rng)
  token_emotion.save(path, predictor)
  args = ['emotion', str(tokens), '--predictor', str(path)]
  code = (f'import sys, affectcodec_jax.__main__ as m\nassert m.main({args + ["--json"]!r}) == 0\n'
          'assert "jax" not in sys.modules')
  printed = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True).stdout
  result = json.loads(printed)
  assert list(result['probabilities']) == list(EMOTIONS) and result['stages_used'] == 2
  assert result['blocks'] == predictor.weights[2][0]
  assert sum(result['probabilities'].values()) == pytest.approx(1) and 1 <= result['valence'] <= 9
  assert cli.main(args) == 0
  printed = capsys.readouterr().out
  highest = max(result['probabilities'].values())
  assert f'{highest:.3f}' in printed.splitlines()[1] and 'dominance' in printed

  def fails(args, message):
    assert cli.main(['emotion', *map(str, args)]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and err[0].startswith('error: ') and message in err[0], err

  fails([tmp_path / 'none.afc'], 'no such file')
  fails([tokens, '--predictor', tmp_path / 'none'], 'analyse token_emotion')
  fails([tokens, '--predictor', tokens], 'not a predictor')
  save_params(tmp_path / 'other.safetensors', {'a': np.zeros(3)})
  fails([tokens, '--predictor', tmp_path / 'other.safetensors'], 'not a predictor')
  token_emotion.save(path, predictor._replace(weights={4: predictor.weights[4]}))
  fails(args[1:], 'needs 4 stages or more, the tokens have 3')
  token_emotion.save(path, predictor._replace(fingerprint=b'othermod'))
  fails(args[1:], f'made by model {FINGERPRINT.hex()}, the predictor is for {b"othermod".hex()}')
  monkeypatch.setattr(token_emotion, 'PACKAGED', tmp_path / 'absent')
  fails([tokens], 'no predictor is packaged')


def test_composed_codes_have_the_bits_of_both():
  """Against the bits themselves; frames of the emotion block are those at the same relative position."""
  rng = np.random.default_rng(0)
  for frames in (45, 60, 133):
    a, b = _codes(rng, frames, 3), _codes(rng, 60, 3)
    codes = transplant.compose(a, b, LEVELS)
    assert codes.shape == b.shape and codes.dtype == np.int32
    np.testing.assert_array_equal(codes >> 3, b >> 3)
    middles = (np.arange(60) + 0.5) / 60
    nearest = [np.argmin(np.abs((np.arange(frames) + 0.5) / frames - m)) for m in middles]  # no ties
    np.testing.assert_array_equal(codes & 7, a[nearest] & 7)


def _item(speaker, emotion, text):
  return {'speaker': speaker, 'emotion': emotion, 'text': text}


def test_quartets_are_of_the_speakers_and_emotions_they_should_be():
  items = [_item(s, e, t) for s in 'ab' for e in (1, 3, 4) for t in 'xy' for _ in range(2)]
  items.append(_item('c', 2, 'x'))
  found = transplant.quartets(items)
  assert [q.receiver for q in found] == list(range(24))
  for q in found:
    b, a, control, other = (items[i] for i in q)
    assert len(set(q)) == 4 and {i['text'] for i in (b, a, control, other)} == {b['text']}
    assert a['speaker'] == b['speaker'] == control['speaker'] != other['speaker']
    assert a['emotion'] == other['emotion'] != b['emotion'] == control['emotion']
  assert {items[q.donor]['emotion'] for q in found} == {1, 3, 4}
  with pytest.raises(UserError, match='no utterance has three others'):
    transplant.quartets(items[:1])


def test_effects_are_what_was_put_in():
  """B is classified as itself; A's emotion block moves 0.3 of probability to A's emotion, at a cost."""
  rng = np.random.default_rng(0)
  rows = []
  for i in range(40):
    own, target = rng.choice(8, size=2, replace=False)
    plain, moved = np.eye(8)[own], 0.3 * (np.eye(8)[target] - np.eye(8)[own])
    posteriors = dict.fromkeys(transplant.VARIANTS, plain)
    posteriors |= {'emotion': plain + moved, 'donor': np.eye(8)[target]}
    rows.append({'speaker': f's{i % 8}', 'file': str(i), 'receiver': own, 'target': target,
                 'probabilities': {'judge': posteriors},
                 'cost': {'mel': {'plain': 0.0, 'emotion': 0.1 * (i % 5)}}})
  result = transplant.summarise(rows)
  judge = result['judges']['judge']
  assert result['pairs'] == 40 and result['speakers'] == 8 and sum(result['targets'].values()) == 40
  assert judge['plain']['receiver']['mean'] == 1 and judge['control']['target']['mean'] == 0
  assert judge['emotion']['target']['mean'] == pytest.approx(0.3)
  assert judge['emotion']['receiver']['mean'] == pytest.approx(-0.3)
  assert result['net']['judge']['low'] == pytest.approx(0.3)
  assert judge['emotion']['predicted_receiver']['mean'] == 1
  assert judge['donor']['predicted_target']['mean'] == 1
  assert result['cost']['mel']['emotion']['mean'] == pytest.approx(0.2)


@pytest.fixture(scope='module')
def codec():
  """An untrained codec of 3 stages."""
  config = tiny(base.get_config())
  frozen = {'teacher': weights.load_teacher(config)}
  params = jax.jit(functools.partial(init_params, config))(jax.random.PRNGKey(0))[0]
  return api.Pretrained(config, params, frozen, step=0)


def test_a_transplant_moves_its_block_of_the_latent_and_nothing_else(codec):
  """Bit for bit; with itself as donor an utterance decodes as it is."""
  rng = np.random.default_rng(0)
  a, b = _codes(rng, 25, 3), _codes(rng, 25, 3)
  lookup = jax.jit(lambda codes: make_codec(codec.config).apply(
      {'params': codec.params}, codes[None], method=Codec.lookup)[0])
  mixed, of_a, of_b = (np.asarray(lookup(c)) for c in (transplant.compose(a, b, LEVELS), a, b))
  width = codec.config.model.emotion_dim
  np.testing.assert_array_equal(mixed[:, :width], of_a[:, :width])
  np.testing.assert_array_equal(mixed[:, width:], of_b[:, width:])
  assert np.abs(of_a - of_b).max() > 0.1
  np.testing.assert_array_equal(codec.decode(transplant.compose(b, b, LEVELS)), codec.decode(b))


def test_decoded_emotion_is_of_the_emotion_block_and_of_the_frames_there_are(codec):
  """Other acoustic digits change nothing; the head says what it says of the features themselves, unpadded.

  Clips of two codes, one an emotion, are told apart by the machine. Tolerance: float32 in another order.
  """
  pytest.importorskip('sklearn')
  rng = np.random.default_rng(0)

  def clips(count):
    codes = [(_codes(rng, 20 + i, 3) >> 3 << 3) + 7 * (i % 2) for i in range(count)]
    return [Clip(c, None, (3, 5)[i % 2], f's{i}', '', f'{i}') for i, c in enumerate(codes)]

  train, valid, test = (clips(n) for n in (12, 4, 6))
  found = decoded_emotion.classify(codec, train, valid, test, 2)
  assert found['svm'].argmax(axis=1).tolist() == [3, 5] * 3
  other = [c._replace(codes=c.codes % 8 + (_codes(rng, len(c.codes), 3) >> 3 << 3)) for c in test]
  for name, probabilities in decoded_emotion.classify(codec, train, valid, other, 2).items():
    np.testing.assert_allclose(probabilities, found[name], atol=1e-6)
  network = functools.partial(make_codec(codec.config).apply, {'params': codec.params})
  followed = np.pad(test[0].codes[:, :2], ((0, 9), (0, 0)), mode='edge')[None]  # further than kernels reach
  features = network(network(followed, method=Codec.lookup), method=Codec.emotion_features)[:, :20]
  wanted = jax.nn.softmax(teachers.teacher_logits(codec.config, codec.frozen, features))
  np.testing.assert_allclose(found['head'][:1], wanted, atol=1e-5)


@pytest.fixture(scope='module')
def manifest(tmp_path_factory):
  """Half seconds of synthetic speech: in each split two speakers with two emotions, twice."""
  data, rows = tmp_path_factory.mktemp('data'), []
  source = SyntheticSource(24, seed=0)
  for i in range(24):
    soundfile.write(data / f'{i}.wav', source[i]['audio'][:8000], 16000)
    rows.append({'path': f'{i}.wav', 'split': ('train', 'valid', 'test')[i // 8], 'speaker': f's{i // 4}',
                 'emotion': ('sad', 'angry')[i % 2]})
  (data / 'm.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return str(data / 'm.jsonl')


def _judge():
  """Tells clips apart by how loud they are, and how loud they end."""
  return lambda audio: np.linspace(0.1, 0.15, 8) * np.std(audio) + np.eye(8)[3] * np.std(audio[-800:])


def test_commands_train_and_transplant(codec, manifest, tmp_path, capsys, monkeypatch):
  pytest.importorskip('sklearn')
  pytest.importorskip('matplotlib')
  monkeypatch.setattr(api, 'load', lambda path: codec)
  monkeypatch.setattr(judges, 'network_judge', _judge)
  monkeypatch.setattr(judges, 'packaged_teacher', _judge)
  monkeypatch.setattr(judges, 'available', lambda: ({'network': _judge()}, {'svm': 'not asked'}))
  monkeypatch.setattr(transplant, 'costs', lambda: ({'length': lambda *audio: len(audio[2])}, {}))
  path, report = tmp_path / 'p.safetensors', tmp_path / 'report.json'
  assert cli.main(
      ['analyse', 'token_emotion', '--data', manifest, '--out', str(path), '--report', str(report)]) == 0
  assert list(token_emotion.load(path).weights) == [1, 2, 3]
  report = json.loads(report.read_text())
  assert report['chance'] == 0.5 and len(report['from_audio']) == 5
  assert all(set(kinds['decoded']) == {'head', 'svm'} for kinds in report['stages'].values())
  audio = SyntheticSource(1, seed=1)[0]['audio']
  result = token_emotion.load(path).predict(codec.encode(audio, 16000, kbps=1.5))
  assert result[[EMOTIONS.index('sad'), EMOTIONS.index('angry')]].sum() == pytest.approx(1)
  capsys.readouterr()
  nowhere = str(tmp_path / 'no' / 'p')
  assert cli.main(['analyse', 'token_emotion', '--data', manifest, '--out', nowhere]) == 2
  assert 'no such folder' in capsys.readouterr().err
  out = tmp_path / 'transplant'
  assert cli.main(
      ['analyse', 'transplant', '--checkpoint', 'run', '--data', manifest, '--out', str(out)]) == 0
  assert (out / 'transplant.png').read_bytes()[:4] == b'\x89PNG'
  results = json.loads((out / 'results.json').read_text())
  assert results['pairs'] == 8 and results['speakers'] == 2 and results['kbps'] == 2.25
  items = list(read_items(manifest, 'test', labelled=True))
  of = [encode_clip(codec, item).codes for item in items]
  for variant, parts in (('donor', lambda q: of[q.donor]),
                         ('emotion', lambda q: transplant.compose(of[q.donor], of[q.receiver], LEVELS))):
    changes = [np.subtract(*(_judge()(codec.decode(c))[items[q.donor]['emotion']]
                             for c in (parts(q), of[q.receiver]))) for q in transplant.quartets(items)]
    assert np.ptp(changes) > 1e-6  # what the judge says depends on the clip
    assert results['judges']['network'][variant]['target']['mean'] == pytest.approx(
        np.mean(changes), rel=1e-5)  # results have six digits
  assert 'svm: absent' in capsys.readouterr().out
  with pytest.raises(UserError, match='not apart'):
    config = base.get_config()
    config.model.quantizer = 'full_rfsq'
    transplant.transplant(api.Pretrained(config, codec.params, codec.frozen, 0), manifest, 'test', 0)
