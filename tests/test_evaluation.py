"""The evaluation as a whole: intervals, degradation rates, kept scores, the command and its page."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from affectcodec_jax import __main__ as cli
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.evaluation import compare, facts, report, scoring, statistics, summary
from affectcodec_jax.evaluation import run as evaluation
from affectcodec_jax.evaluation.systems import System
from configs import base
from tests.conftest import tiny, untrained_release


def _rows(rng, speakers=6, clips=5):
  return [{'speaker': f's{s}', 'file': f'{s}/{c}', 'value': float(s + rng.normal())}
          for s in range(speakers) for c in range(clips + s)]


def test_intervals_are_those_of_drawing_speakers_one_by_one():
  """Against the plain bootstrap, with another generator's draws: means equal, bounds within 0.25."""
  rows = _rows(np.random.default_rng(0))
  values = np.array([r['value'] for r in rows])
  quick = statistics.Speakers(rows, draws=4000).ratio(values)
  plain = statistics.bootstrap(statistics.speaker_groups(rows), lambda i: values[i].mean(), draws=4000)
  assert quick['mean'] == pytest.approx(plain['mean'])
  assert quick['low'] == pytest.approx(plain['low'], abs=0.25)  # the standard error is 0.8
  assert quick['high'] == pytest.approx(plain['high'], abs=0.25)
  # Clips of a speaker are alike: drawing clips instead would claim to know more.
  alone = statistics.Speakers([r | {'speaker': ''} for r in rows]).ratio(values)
  assert alone['high'] - alone['low'] < 0.8 * (quick['high'] - quick['low'])


def test_missing_values_are_left_out_and_none_is_none():
  rows = _rows(np.random.default_rng(0))[:4]
  speakers = statistics.Speakers(rows)
  assert speakers.ratio([1.0, np.nan, 3.0, np.nan])['mean'] == 2.0
  assert speakers.ratio([np.nan] * 4) is None


def test_emotion_degradation_by_hand():
  """Emotion 0: 2 of 2 recognised before, 1 of 2 after. Emotion 1: 1 of 1 before and after."""
  speakers = statistics.Speakers([{'speaker': s, 'file': s} for s in 'abc'])
  truth, before, after = np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([0, 1, 1])
  macro, weighted = (speakers.degradation(truth, before, after, macro=m)[0] for m in (True, False))
  assert macro == pytest.approx(100 * (1 - (0.5 + 1) / 2)) and weighted == pytest.approx(100 * (1 - 2 / 3))
  assert np.isnan(speakers.degradation(truth, 1 - before, after, macro=True)[0])  # nothing there to lose


def _judged(system, file, emotion, posterior, **more):
  return {'system': system, 'label': system, 'kbps': 0.0, 'file': file, 'speaker': file, 'emotion': emotion,
          'corpus': 'c', 'gender': 'F', 'seconds': 2.0, 'bits': 3000, 'problems': {}, 'codes': None,
          'j': posterior} | more


def test_judgements_need_the_original_beside_them():
  sure, unsure = np.eye(8)[1].tolist(), (0.6 * np.eye(8)[2] + 0.4 * np.eye(8)[1]).tolist()
  rows = [_judged('original', 'a', 1, sure, egemaps=[0.0, 5.0, 1.0], words=4, word_errors=1),
          _judged('original', 'b', 2, sure, egemaps=[2.0, 5.0, 3.0], words=6, word_errors=0),
          _judged('x', 'a', 1, sure, egemaps=[1.0, 5.0, 1.0], words=4, word_errors=4),
          _judged('x', 'b', 2, unsure, egemaps=[2.0, 9.0, 5.0], words=6, word_errors=1)]
  assert summary.add_judgements(rows, ['j']) == ['j']
  assert [r['j_agreement'] for r in rows] == [1, 1, 1, 0]
  assert rows[3]['j_variation'] == pytest.approx(0.6) and rows[3]['j_predicted'] == 2
  # Spread over originals: 1, 0 (left out) and 1.
  assert rows[2]['egemaps_drift'] == pytest.approx(0.5) and rows[3]['egemaps_drift'] == pytest.approx(1.0)
  results = summary.summarise(rows, ['j'])
  x = results['x']
  assert x['scores']['wer']['mean'] == pytest.approx(5 / 10) and x['measured_kbps'] == 1.5
  # Emotion 1 recognised before and after; emotion 2 only after: recall rises from 1/2 to 1.
  assert x['scores']['j_macro']['mean'] == pytest.approx(-100)
  assert x['confusion']['j'][2][2] == 1 and np.sum(x['confusion']['j']) == 2
  assert x['emotions'][EMOTIONS[1]]['j_agreement']['clips'] == 1
  assert x['groups']['gender F']['wer']['clips'] == 2 and x['scores']['pesq'] is None


def test_a_file_that_fails_in_one_system_counts_in_none():
  """Of three files one has no PESQ through y, another no judgement through x: means are of the rest."""
  at = lambda i: np.eye(8)[i].tolist()
  rows = [_judged(system, f, e, at(e), pesq=float(f), words=4, word_errors=int(f))
          for system in ('original', 'x', 'y') for f, e in (('1', 1), ('2', 2), ('4', 1))]
  by = {(r['system'], r['file']): r for r in rows}
  for f in '124':
    by['original', f]['pesq'] = None  # of the original itself there is none: no failure
  by['y', '4']['pesq'] = by['y', '2']['words'] = by['x', '1']['j'] = None
  summary.add_judgements(rows, ['j'])
  assert summary.failures(rows, ['j']) == {'pesq': {'y': 1}, 'words': {'y': 1}, 'j_predicted': {'x': 1}}
  results = {k: r['scores'] for k, r in summary.summarise(rows, ['j']).items()}
  for system in 'xy':
    scores = results[system]
    assert scores['pesq']['mean'] == 1.5 and scores['pesq']['clips'] == 2
    assert scores['wer']['mean'] == pytest.approx(5 / 8) and scores['j_agreement']['clips'] == 2
    assert scores['j_accuracy']['clips'] == 2
  assert results['original']['pesq'] is None and results['original']['j_agreement']['clips'] == 2


def _page_of(folder, rows):
  """The report on rows of judge `j`, without clips."""
  judges = summary.add_judgements(rows, ['j'])
  results = {
      'checkpoint': 'x', 'step': 1, 'split': 'test', 'skipped': 0, 'seconds': 2.0, 'judges': judges,
      'metrics': {}, 'absent': {}, 'files': len({r['file'] for r in rows}),
      'speakers': len({r['speaker'] for r in rows}), 'limits': summary.caveats(rows),
      'failures': summary.failures(rows, judges),
      'systems': summary.summarise(rows, judges)}
  report.write_report(folder / 'page.html', results, rows, [], None, 0)
  return (folder / 'page.html').read_text()


def _several(speakers, emotions=(1, 2)):
  """The original and the codec on a clip of each speaker, whose emotions take turns."""
  at = lambda i: np.eye(8)[emotions[i % len(emotions)]].tolist()
  return [_judged(system, f'f{i}', emotions[i % len(emotions)], at(i), mel=0.5 + 0.1 * i, kbps=3.0)
          for system in ('original', 'affectcodec') for i in range(speakers)]


def test_eight_labels_of_another_kind_are_not_the_eight_emotions():
  """Such a classifier tells whether a clip is as its original was, and nothing of the true emotion."""
  rows = [r | {'j_labels': list('abcdefgh')} for r in _several(6)]
  summary.add_judgements(rows, ['j'])
  scores = summary.summarise(rows, ['j'])['affectcodec']['scores']
  assert scores['j_agreement']['mean'] == 1 and 'j_accuracy' not in scores and 'j_macro' not in scores


def test_a_report_of_few_says_what_it_does_not_tell(tmp_path):
  """Of one file, no interval, no agreement, no confusion; the same of six speakers has them all."""
  pytest.importorskip('jinja2')
  pytest.importorskip('matplotlib')
  one, many, alike = (_page_of(tmp_path, rows) for rows in (_several(1), _several(6), _several(6, (1,))))
  wanted = ('95 % bootstrap', '<small>0.', 'agreement ', 'MEDR', 'What is classified as what', 'By corpus')
  for text in wanted:
    assert text not in one.replace(summary.caveats(_several(1))[0], '') and text in many, text
  assert 'What this does not tell' in one and '1 file of 1 speaker:' in one and 'variation' in one
  assert 'What this does not tell' not in many and '6 files of 6 speakers' in many
  assert 'Fewer than two emotions are labelled' in alike and 'What is classified' not in alike
  assert '95 % bootstrap' in alike
  unknown = [r | {'speaker': ''} for r in _several(6)]
  assert summary.caveats(unknown)[0].startswith('Speakers are not known')


def _item(seconds=1.0, **about):
  audio = SyntheticSource(2, seed=0)[0]['audio'][:int(16000 * seconds)]
  return {'audio': audio, 'name': 'a.wav', 'lang': '', 'text': ''} | about


def test_scores_are_kept_by_content(tmp_path):
  """A second call measures nothing; a new metric only itself; a new version or other words again."""
  calls = []

  def system(version='1'):
    return System('x', 6.0, lambda audio: (calls.append('run') or audio, 100), version)

  def metric(name, version='1'):
    return {name: (lambda: lambda a, b, item: calls.append(name) or {name: float(np.sum(a - b))}, version)}

  def scored_by(system, metrics, item):
    calls.clear()
    record = scoring.Scorer([system], metrics, tmp_path)(item)['x 6']
    return record, list(calls)

  record, seen = scored_by(system(), metric('m'), _item())
  assert seen == ['run', 'm'] and record['scores'] == {'m': {'m': 0.0}} and record['bits'] == 100
  assert scored_by(system(), metric('m'), _item()) == (record, [])
  assert scored_by(system(), metric('m') | metric('n'), _item())[1] == ['run', 'n']
  assert scored_by(system(), metric('n'), _item())[0]['scores'] == {'n': {'n': 0.0}}  # and nothing else
  assert scored_by(system(), metric('m', '2'), _item())[1] == ['run', 'm']
  assert scored_by(system('2'), metric('m', '2'), _item())[1] == ['run', 'm']
  assert scored_by(system(), metric('m', '2'), _item(text='words'))[1] == ['run', 'm']
  assert scored_by(system(), metric('m', '2'), _item(0.9))[1] == ['run', 'm']
  for path in tmp_path.rglob('*.json'):
    path.write_text(path.read_text()[:-5])
  assert scored_by(system(), metric('m', '2'), _item())[1] == ['run', 'm']  # a damaged file is as none


def test_a_metric_that_fails_is_reported_and_the_others_go_on(tmp_path):
  def fail(a, b, item):
    raise RuntimeError('too short\nto tell')
  metrics = {'bad': (lambda: fail, '1'), 'good': (lambda: lambda a, b, item: {'good': 1.0}, '1')}
  system = System('x', 6.0, lambda audio: (audio, 100), '1')
  record = scoring.Scorer([system], metrics, tmp_path)(_item())['x 6']
  assert record['problems'] == {'bad': 'RuntimeError: too short to tell'} and record['scores']['good']


def test_what_is_wrong_with_the_machine_is_not_kept_of_a_clip(tmp_path):
  """A metric that cannot be set up ends the run; one that cannot read a file is tried again."""
  def broken():
    raise OSError('libpesq.so: cannot open')
  system, works = System('x', 6.0, lambda audio: (audio, 100), '1'), []

  def score(a, b, item):
    if not works:
      raise OSError('disk full')
    return {'m': 1.0}
  with pytest.raises(UserError, match='metric m cannot be set up .*libpesq'):
    scoring.Scorer([system], {'m': (broken, '1')}, tmp_path)(_item())
  scorer = scoring.Scorer([system], {'m': (lambda: score, '1')}, tmp_path)
  assert 'disk full' in scorer(_item())['x 6']['problems']['m']
  works.append(True)
  assert scorer(_item())['x 6'] | {'versions': 0} == {
      'bits': 100, 'scores': {'m': {'m': 1.0}}, 'versions': 0, 'problems': {}}


def test_what_is_not_a_number_is_no_score(tmp_path):
  """ViSQOL of digital silence, say: such a file failed, and counts in no system's mean."""
  system = System('x', 6, lambda audio: (audio, 100), '1')
  scores = {'m': float('nan'), 'n': [0.5, float('inf')], 'j': [0.5, 0.5], 'j_labels': ['a', 'b'], 'w': 3}
  for _ in range(2):  # as it is measured, and as it was kept
    scorer = scoring.Scorer([system], {'m': (lambda: lambda a, b, item: scores, '1')}, tmp_path)
    assert scorer(_item())['x 6']['scores'] == {'m': scores | {'m': None, 'n': None}}


def test_names_that_are_not_utf8_stay_apart(tmp_path):
  rows = [_judged(system, f'{c}.wav', 1, [0.5] * 8, pesq=p) for system in ('original', 'x')
          for c, p in (('\udcff', 1.5), ('\udcfe', float('nan')))]
  evaluation.write_rows(tmp_path / 'files.csv', rows)
  read = compare.read_files(tmp_path / 'files.csv', 'x')
  assert len(read) == 2 and sorted(r['pesq'] for r in read.values()) == ['', '1.5']


def test_systems_of_one_name_are_refused(monkeypatch):
  twice = [System('dac', 3.0, None, v) for v in '12']
  monkeypatch.setattr(scoring, 'make_peers', lambda peers: (twice, {}))
  with pytest.raises(UserError, match="2 systems would be called 'dac 3'"):
    scoring.make_systems('none', ['a/dac', 'b/dac'])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  config = tiny(base.get_config())
  config.model.num_stages, config.rates = 8, (2, 4, 8)
  folder = tmp_path_factory.mktemp('codec')
  untrained_release(config, folder)
  return folder


@pytest.fixture
def speech(tmp_path):
  """Three speakers' clips, one of them too short for STOI, and a file that is no audio."""
  for i, seconds in enumerate((2.0, 1.5, 0.4)):
    audio = SyntheticSource(3, seed=0)[i]['audio'][:int(16000 * seconds)]
    soundfile.write(tmp_path / f'{i}.wav', audio, 16000)
  (tmp_path / 'bad.wav').write_bytes(b'RIFF')
  rows = [{'path': f'{i}.wav', 'split': 'test', 'speaker': f's{i}', 'emotion': e, 'gender': 'F'}
          for i, e in enumerate(('happy', 'sad', 'happy'))] + [{'path': 'bad.wav', 'split': 'test'}]
  (tmp_path / 'm.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return tmp_path / 'm.jsonl'


def test_evaluation_scores_every_rate_beside_peers(run, speech, tmp_path, monkeypatch, capsys):
  """The codec at three rates and Opus, in processes of their own; again from what was kept."""
  out = tmp_path / 'out'
  args = ['--checkpoint', str(run), '--data', str(speech), '--out', str(out), '--cache',
          str(tmp_path / 'c'), '--metrics', 'spectral', 'energy', 'network', '--peers', 'opus',
          'no/such/model', '--clips', '2']
  assert cli.main(['evaluate', *args, '--jobs', '2']) == 0
  results = json.loads((out / 'results.json').read_text())
  table = list(csv.DictReader((out / 'files.csv').open()))
  labels = ['original', 'affectcodec 1.5', 'affectcodec 3', 'affectcodec 6', 'opus 6', 'opus 9', 'opus 12']
  assert list(results['systems']) == labels and results['files'] == 3 and len(table) == 21
  assert 'no/such/model' in results['absent']
  for label in labels:
    mel = results['systems'][label]['scores']['mel']
    values = [float(r['mel']) for r in table if r['label'] == label]
    assert mel['mean'] == pytest.approx(np.mean(values), rel=1e-5)  # results.json keeps six digits
    assert mel['low'] is mel['high'] is None  # of three speakers
  original = results['systems']['original']['scores']
  assert original['mel']['mean'] == 0 and original['network_agreement']['mean'] == 1
  assert results['systems']['affectcodec 3']['measured_kbps'] == pytest.approx(3.0, rel=0.02)
  codec = results['codec']
  assert codec['parameters']['all'] == sum(v for k, v in codec['parameters'].items() if k != 'all')
  assert codec['usage']['bits_per_second']['nominal'] == 6000 and codec['working_bytes']['decode'] > 0
  kept = {p: p.stat().st_mtime_ns for p in (tmp_path / 'c').rglob('*.json')}
  assert len(kept) == 21
  monkeypatch.setattr(facts, 'real_time_factor', lambda *a, **k: None)  # once is enough
  monkeypatch.setattr(facts, 'codec_facts', lambda *a: {})
  assert cli.main(['evaluate', *args, '--jobs', '1', '--no-report']) == 0
  assert {p: p.stat().st_mtime_ns for p in (tmp_path / 'c').rglob('*.json')} == kept
  again = json.loads((out / 'results.json').read_text())
  for label in labels:
    assert again['systems'][label]['scores'] == results['systems'][label]['scores']
  assert results['skipped'] == 1


def test_the_page_holds_all_it_shows(run, speech, tmp_path):
  """No address of elsewhere in it; every clip through every system; a too short clip is reported."""
  pytest.importorskip('jinja2')
  pytest.importorskip('pystoi')
  args = ['--checkpoint', str(run), '--data', str(speech), '--out', str(tmp_path / 'out'), '--jobs', '1',
          '--cache', str(tmp_path / 'c'), '--metrics', 'spectral', 'network', 'stoi', '--peers', 'none',
          '--clips', '2']
  assert cli.main(['evaluate', *args]) == 0
  page = (tmp_path / 'out' / 'report.html').read_text()
  outside = {u for u in re.findall(r'(?:src|href)="([^"]{0,40})', page) if not u.startswith(('data:', '#'))}
  assert not outside and '@import' not in page and '<script' not in page
  assert page.count('<audio') == page.count('<img') == 2 * 4
  assert 'shorter than half a second' in page and 'var(--series-0)' in page and '#0302' not in page


def test_mistakes_get_one_line(run, speech, tmp_path, capsys):
  args = ['--data', str(speech), '--out', str(tmp_path / 'out'), '--cache', str(tmp_path / 'c')]
  for more, message in ((['--checkpoint', 'none', '--peers', 'none'], 'nothing to score'),
                        (['--metrics', 'loudness'], "no metric 'loudness'; there are spectral"),
                        (['--metrics', 'quick', 'energy'], 'quick stands alone'),
                        (['--jobs', '0'], '--jobs at least 1'),
                        (['--checkpoint', str(tmp_path)], 'workdir of a training run'),
                        (['--peers', 'opus', '--split', 'none'], "split 'none'"),
                        (['--judges', str(tmp_path)], 'affectcodec_jax teacher judge'),
                        (['--classifier', str(tmp_path / 'none')], 'none')):
    assert cli.main(['evaluate', *args, *more]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and message in errors[0]


def test_a_worker_leaves_with_its_parent():
  """However the parent ended: here it just does, right after it has started the other."""
  # Whose child it is the worker asks before it prints: what it prints lets the parent go.
  # And it begins to look after the parent's end, as one that is slow to start does.
  worker = ('import os, time\nfrom affectcodec_jax.common import workers\nparent = os.getppid()\n'
            'print(os.getpid(), flush=True)\nwhile os.getppid() == parent:\n  time.sleep(0.01)\n'
            'workers._start(parent, None, ())\ntime.sleep(600)')
  parent = ('import subprocess, sys; '
            f'p = subprocess.Popen([sys.executable, "-c", {worker!r}], stdout=subprocess.PIPE, text=True); '
            'print(p.stdout.readline())')
  done = subprocess.run([sys.executable, '-c', parent], capture_output=True, text=True, check=True)
  pid = int(done.stdout)
  for _ in range(100):
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return
    time.sleep(0.1)
  os.kill(pid, signal.SIGKILL)
  raise AssertionError('the worker stayed')
