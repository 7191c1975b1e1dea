"""Teacher, student, judges, augmentation, and the figures made of judgements."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax import load
from affectcodec_jax import train as train_lib
from affectcodec_jax.common import packaged
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.data import augment
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.emotion import judges, teachers
from affectcodec_jax.emotion.compact import Student, Teacher
from affectcodec_jax.evaluation import ablate
from affectcodec_jax.inference import weights
from affectcodec_jax.models.params import load_params
from tests.conftest import tiny

STUDENT_FLAGS = ['--config', 'configs/student.py', '--config.data.num_clips=24', '--config.train.steps=3',
                 '--config.train.batch_size=4', '--config.data.crop_seconds=0.4',
                 '--config.student.width=8', '--config.student.depth=1']


@pytest.mark.parametrize('network', [Teacher(16, depth=3), Student(16, 8, 3)])
def test_padding_does_not_leak(network):
  """10 frames alone and followed by 15 of noise: frames out of reach of the last window are equal.

  The STFT of the last two frames sees the padded samples; the convolutions must not carry that further
  than they reach, so the tolerance is float32's for a different batch, and the two frames are left out
  by putting silence there.
  """
  audio = 0.1 * jax.random.normal(jax.random.key(0), (1, 3200))
  audio = audio.at[:, -1280:].set(0.0)  # so that what the last windows see is the same in both
  longer = jnp.pad(audio, ((0, 0), (0, 4800)))
  mask = jnp.arange(25)[None] < 10
  method = 'features' if isinstance(network, Teacher) else '__call__'
  params = network.init(jax.random.key(1), audio, method=method)
  alone = network.apply(params, audio, method=method)
  padded = network.apply(params, longer, mask, method=method)
  np.testing.assert_allclose(padded[:, :10], alone, atol=1e-4)
  unmasked = network.apply(params, longer, method=method)
  assert np.abs(np.asarray(unmasked[:, :10] - alone)).max() > 1e-3  # the mask is what does it


def test_teacher_pools_only_what_is_there():
  model = Teacher(8, depth=1)
  params = model.init(jax.random.key(0), jnp.zeros((1, 3200)))
  features = jax.random.normal(jax.random.key(1), (1, 10, 8))
  mask = jnp.arange(10)[None] < 6
  part = model.apply(params, features[:, :6], method='logits')
  np.testing.assert_allclose(model.apply(params, features, mask, method='logits'), part, atol=1e-5)


def test_packaged_networks_know_their_corpora_better_than_chance():
  """On synthetic voices that they never heard one can ask little: finite, and not one answer for all."""
  network = judges.network_judge()
  source = SyntheticSource(32, seed=0)
  guesses = np.stack([network(source[i]['audio']) for i in range(16)])
  np.testing.assert_allclose(guesses.sum(axis=1), 1, atol=1e-5)
  assert len(set(guesses.argmax(axis=1))) > 1


def test_augmentation_keeps_shape_and_speaks():
  audio = np.stack([SyntheticSource(4, seed=0)[i]['audio'][:17600] for i in range(4)])
  out = jax.jit(lambda a, r: augment.augment(a, r, 16000))(audio, jax.random.key(0))
  assert out.shape == (4, 16000) and np.isfinite(np.asarray(out)).all()
  again = augment.augment(audio, jax.random.key(0), 16000)
  np.testing.assert_allclose(out, again, atol=1e-4)  # the same key: the same distortion
  loudness = np.sqrt(np.mean(np.asarray(out) ** 2, axis=1) / np.mean(audio ** 2, axis=1))
  assert ((loudness > 0.3) & (loudness < 3.0)).all()


def test_speed_moves_pitch_by_the_factor():
  """A 200 Hz tone comes out between 182 and 220 Hz, and not always at the same."""
  tone = np.tile(np.sin(2 * np.pi * 200 * np.arange(17600) / 16000), (8, 1)).astype(np.float32)
  out = np.asarray(augment.change_speed(tone, jax.random.key(0), 16000))
  peaks = np.abs(np.fft.rfft(out * np.hanning(16000))).argmax(axis=1)  # bins of 1 Hz
  assert peaks.min() >= 181 and peaks.max() <= 220 and len(set(peaks)) > 3


def test_band_limit_takes_from_the_top():
  rng = np.random.default_rng(0)
  noise = (rng.normal(size=(64, 50, 321)), rng.normal(size=(64, 50, 321)))
  real, _ = augment.band_limit(noise, jax.random.key(0), probability=1.0)
  power = np.asarray(real ** 2).mean(axis=(0, 1))
  assert power[300:].mean() < 0.5 * power[20:80].mean()
  untouched, _ = augment.band_limit(noise, jax.random.key(0), probability=0.0)
  np.testing.assert_allclose(untouched, noise[0], rtol=1e-6)


def test_scores_by_hand():
  items = [{'emotion': e, 'corpus': c} for e, c in ((0, 'a'), (0, 'a'), (0, 'b'), (2, 'b'))]
  result = judges.score(items, np.array([0, 0, 2, 2]))
  assert result['accuracy'] == pytest.approx((2 / 3 + 1) / 2) and result['clips'] == 4
  assert result['corpora'] == {'a': 1.0, 'b': pytest.approx(0.5)}
  assert result['confusion'][0][2] == 1 and np.sum(result['confusion']) == 4


def test_svm_judge_learns_and_is_kept_as_numbers(tmp_path):
  pytest.importorskip('sklearn')
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 90)
  features = rng.normal(size=(90, 5)) + 4 * np.eye(5)[labels]
  svm = judges.fit_svm(features[:60], labels[:60], features[60:], labels[60:])
  probabilities = svm(features[60:])
  assert probabilities.shape == (30, len(EMOTIONS)) and (probabilities[:, 3:] == 0).all()
  assert (probabilities.argmax(axis=1) == labels[60:]).mean() > 0.9  # 4 sigma apart
  with pytest.raises(UserError, match='affectcodec_jax teacher judge'):
    judges.svm_posteriors(tmp_path)


def test_teacher_trains_and_reports(tmp_path, capsys):
  args = ['teacher', 'train', '--config', 'configs/teacher.py', '--workdir', str(tmp_path),
          '--config.data.num_clips=24', '--config.train.steps=3', '--config.train.batch_size=4',
          '--config.data.crop_seconds=0.4',
          '--config.teacher.dim=16']
  assert cli.main(args) == 0
  results = json.loads((tmp_path / 'results.json').read_text())
  assert 0 <= results['valid']['accuracy'] <= 1 and results['valid']['clips'] == 32
  params = load_params(tmp_path / 'teacher.safetensors')
  assert params['head']['bias'].shape == (len(EMOTIONS),)
  assert 'unweighted accuracy on valid' in capsys.readouterr().out


def test_student_is_distilled_and_stands_in_for_the_teacher(tmp_path, capsys):
  """The codec trains on the student's guesses, and encodes in a folder without the teacher."""
  assert cli.main(['teacher', 'distil', *STUDENT_FLAGS, '--workdir', str(tmp_path / 's')]) == 0
  results = json.loads((tmp_path / 's' / 'results.json').read_text())
  assert results['parameters'] < results['teacher_parameters'] and results['explained'] < 1
  from configs.base import get_config
  config = tiny(get_config())
  config.train.steps = 1
  config.teacher.student = str(tmp_path / 's' / 'student.safetensors')
  train_lib.train(config, tmp_path / 'run')
  (tmp_path / 'run' / 'teacher.safetensors').unlink()
  codec = load(tmp_path / 'run')
  assert list(codec.frozen) == ['student']
  audio = SyntheticSource(2, seed=0)[0]['audio'][:8000]
  assert codec.decode(codec.encode(audio, 16000)).shape == (8000,)
  with pytest.raises(UserError, match='not a student'):
    weights.load_student(config, packaged.TEACHER)


def test_student_sizes_are_read_off_the_parameters():
  params = Student(12, 8, 3).init(jax.random.key(0), jnp.zeros((1, 3200)))['params']
  student = teachers.make_student(params)
  assert (student.dim, student.width, student.depth) == (12, 8, 3)


def test_ablation_table_shows_means_and_spread():
  def run(medr, mel):
    scores = {'mel': {'mean': mel}, 'stoi': None, 'a_macro': {'mean': medr}, 'b_macro': {'mean': 0}}
    return {'judges': ['a', 'b'], 'systems': {
        'original': {'system': 'original', 'kbps': 0.0, 'scores': {}},
        'affectcodec 1.5': {'system': 'affectcodec', 'kbps': 1.5, 'scores': scores}}}
  table = ablate.make_table({'rvq': {0: run(10, 0.3), 1: run(30, 0.5)}})
  row = table.splitlines()[-1]
  assert row.startswith('| 1.5 | rvq | 20.0 ± 10.0 | 0.0 ± 0.0 |') and row.endswith('| 0.400 ± 0.100 |')


def test_ablation_trains_scores_and_continues(tmp_path, monkeypatch, capsys):
  """One variant, two steps, on two files; a second call finds all of it done."""
  for i in range(4):
    soundfile.write(tmp_path / f'{i}.wav', SyntheticSource(4, seed=0)[i]['audio'], 16000)
  rows = [{'path': f'{i}.wav', 'split': s, 'speaker': str(i), 'emotion': EMOTIONS[i]}
          for i, s in enumerate(('train', 'train', 'valid', 'test'))]
  (tmp_path / 'm.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  monkeypatch.setenv('XLA_FLAGS', '')  # one device: the batch is 8
  args = ['ablate', '--data', str(tmp_path / 'm.jsonl'), '--out', str(tmp_path / 'out'), '--variants',
          'bd_rfsq', '--metrics', 'spectral', 'network', '--seeds', '0', '--steps', '2']
  assert cli.main(args) == 0
  assert '| 6 | bd_rfsq |' in (tmp_path / 'out' / 'table.md').read_text()
  capsys.readouterr()
  assert cli.main(args) == 0
  assert 'bd_rfsq, seed 0: done' in capsys.readouterr().out
  assert cli.main([*args[:-1], '0']) == 2
