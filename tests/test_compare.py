"""Differences between systems: of the files themselves, over speakers, in the sense of the metric."""

import csv

import numpy as np

from affectcodec_jax import __main__ as cli
from affectcodec_jax.evaluation import compare


def write(path, pesq, errors):
  """files.csv of an original and two systems: `pesq` and `errors` are `[2, files]`."""
  fields = ('file', 'label', 'speaker', 'emotion', 'pesq', 'words', 'word_errors', 'net_predicted',
            'net_agreement')
  with open(path, 'w', newline='', encoding='utf-8') as f:
    writer = csv.DictWriter(f, fields)
    writer.writeheader()
    for i in range(pesq.shape[1]):
      emotion = ('happy', 'sad')[i % 2]
      about = {'file': f'{i}.wav', 'speaker': f's{i // 4}', 'emotion': emotion, 'words': 10}
      original = {'label': 'original', 'pesq': 4.6, 'net_predicted': emotion, 'net_agreement': 1.0}
      writer.writerow(about | original)
      for k, label in enumerate(('a', 'b')):
        predicted = 'sad' if label == 'b' else emotion  # b makes all sad
        writer.writerow(about | {'label': label, 'pesq': pesq[k, i], 'word_errors': errors[k, i],
                                 'net_predicted': predicted, 'net_agreement': float(predicted == emotion)})


def test_differences_pair_files(tmp_path, capsys):
  """Files differ by 10, systems by 0.1: only pairs tell. A missing score leaves its file out."""
  rng = np.random.default_rng(0)
  base = rng.normal(scale=10, size=24)
  pesq = np.stack([base + 0.1 + rng.normal(scale=0.01, size=24), base])
  errors = np.stack([np.arange(24), np.zeros(24)])
  write(tmp_path / 'files.csv', pesq, errors)
  differences = {r[0]: r[1:] for r in compare.compare(tmp_path / 'files.csv', 'a', 'b')}
  a, b, between = differences['PESQ-WB']
  wanted = [*pesq.mean(axis=1), (pesq[0] - pesq[1]).mean()]
  np.testing.assert_allclose([a, b, between['mean']], wanted, rtol=1e-4)  # kept with six digits
  assert 0.09 < between['low'] < between['mean'] < between['high'] < 0.11
  np.testing.assert_allclose(differences['WER'][0], errors[0].sum() / 240)
  # Half of the clips are happy, and b makes them all sad: half of the recall is lost, half of them agree.
  assert differences['MEDR % (net)'][:2] == (0, 50) and differences['agreement (net)'][:2] == (1, 0.5)
  assert cli.main(['compare', str(tmp_path / 'files.csv'), 'a', 'b']) == 0
  lines = capsys.readouterr().out.splitlines()
  said = {line.split(' | ')[0].strip('| '): line.split('|')[-2].strip() for line in lines[2:]}
  assert said['PESQ-WB'] == 'better' and said['WER'] == 'worse' and said['MEDR % (net)'] == 'better'

  pesq = pesq.astype(object)
  pesq[1, 0] = ''
  write(tmp_path / 'files.csv', pesq, errors)
  differences = {r[0]: r[1:] for r in compare.compare(tmp_path / 'files.csv', 'a', 'b')}
  np.testing.assert_allclose(differences['PESQ-WB'][0], pesq[0, 1:].astype(float).mean())


def test_of_four_speakers_no_verdict_is_given(tmp_path, capsys):
  """The same difference for every file, and still no interval: four speakers have 35 draws."""
  write(tmp_path / 'files.csv', np.stack([np.full(16, 3.0), np.full(16, 2.0)]), np.zeros((2, 16)))
  assert cli.main(['compare', str(tmp_path / 'files.csv'), 'a', 'b']) == 0
  said = capsys.readouterr().out
  assert '| PESQ-WB | 3 | 2 | +1 | too few speakers to tell (4) |' in said and 'better' not in said


def test_two_checkpoints_of_two_evaluations(tmp_path, capsys):
  """Systems of one label, each in a file of its own; files that only one has are left out."""
  for name, pesq in (('before', 2.0), ('after', 3.0)):
    (tmp_path / name).mkdir()
    files = 28 if name == 'after' else 24
    write(tmp_path / name / 'files.csv', np.full((2, files), pesq), np.zeros((2, files)))
  after, before = (str(tmp_path / name / 'files.csv') for name in ('after', 'before'))
  assert cli.main(['compare', after, 'a', 'a', '--second-from', before]) == 0
  said = capsys.readouterr().out
  assert '| PESQ-WB | 3 | 2 | +1 [+1, +1] | better |' in said and 'agreement (net)' in said
  lines = (tmp_path / 'before' / 'files.csv').read_text().replace('net_', 'other_')
  (tmp_path / 'before' / 'files.csv').write_text(lines)  # judged by another: that judge is left out
  assert cli.main(['compare', after, 'a', 'a', '--second-from', before]) == 0
  said = capsys.readouterr().out
  assert '| PESQ-WB | 3 | 2 | +1 [+1, +1] | better |' in said and 'net' not in said


def test_mistakes_get_one_line(tmp_path, capsys):
  write(tmp_path / 'files.csv', np.ones((2, 4)), np.ones((2, 4)))
  for args, message in (((tmp_path / 'files.csv', 'a', 'c'), 'it has original, a, b'),
                        ((tmp_path / 'none.csv', 'a', 'b'), 'give files.csv'),
                        ((__file__, 'a', 'b'), 'give files.csv')):
    assert cli.main(['compare', *map(str, args)]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and message in err[0], err
