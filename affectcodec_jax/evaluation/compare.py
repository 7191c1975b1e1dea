"""Two systems of an evaluation on the same files, with the confidence of what is between them.

A row a metric: the mean of each, and their difference with its 95 % interval, by drawing speakers:
both systems of a draw on the same files, so what makes a file hard does not widen it. `better` and `worse`
are said of the first system where the interval leaves zero out, and of enough speakers.
"""

import csv

import numpy as np

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.evaluation.statistics import Speakers, text
from affectcodec_jax.evaluation.summary import COLUMNS

_NO_NUMBER = ('nan', 'inf', '-inf')  # versions before 0.8 wrote these for a score that could not be had


def read_files(path, label):
  """Rows of one system in a `files.csv` of the evaluation, {file: {column: text}}.

  Raises:
    UserError: not such a file, or no such system in it.
  """
  try:
    with open(path, newline='', encoding='utf-8') as f:
      rows = [{k: '' if k in COLUMNS and v in _NO_NUMBER else v for k, v in r.items()}
              for r in csv.DictReader(f)]
    labels = list(dict.fromkeys(r['label'] for r in rows))
    of_label = {r['file']: r for r in rows if r['label'] == label and r['speaker'] is not None
                and r['emotion'] is not None}
  except (OSError, UnicodeDecodeError, KeyError, csv.Error) as e:
    raise UserError(f'{path}: cannot be read ({type(e).__name__}); give files.csv of an evaluation') from e
  if label not in labels:
    raise UserError(f'{path}: no system {label!r}; it has {", ".join(labels)}')
  return of_label


def compare(path, first, second, other=None):
  """`differences` of two systems of a `files.csv`, by their labels; the second may be in another one.

  Raises:
    UserError: as `read_files`, no file in common, or a score that is not a number.
  """
  systems = [read_files(path, first), read_files(other or path, second)]
  originals = read_files(path, 'original')
  if not set(systems[0]) & set(systems[1]):
    raise UserError(f'{path}: {first} and {second}{f" of {other}" if other else ""} have no file in common')
  try:
    return differences(*systems, originals)
  except ValueError as e:
    raise UserError(f'{path}: {e}') from e


def differences(first, second, originals):
  """[(metric's heading, first's mean, second's, difference or None)] of two systems.

  Means are over the files that both have a score of. The difference is first minus second, {'mean', 'low',
  'high', 'sign', 'speakers'}, with sign +1 where more is better and the number of speakers in it; bounds
  are None where those are too few.

  Args:
    first, second, originals: rows of two systems and of the originals by file, as `read_files` gives them.

  Raises:
    ValueError: a score that is not a number.
  """
  files = [f for f in first if f in second]
  headers = [next(iter(rows.values())) for rows in (first, second, originals)]
  judges = [k.removesuffix('_predicted') for k in headers[0]
            if k.endswith('_predicted') and all(k in h for h in headers)]
  rows = [[s[f] | {'all_agreement': _mean_agreement(s[f], judges)} for f in files] for s in (first, second)]
  results = []
  for judge in judges:  # recall lost, where the emotion is known
    column = f'{judge}_predicted'
    known = [i for i, f in enumerate(files) if rows[0][i]['emotion'] and originals[f][column]
             and all(r[i][column] for r in rows)]
    if known:
      speakers = Speakers([rows[0][i] for i in known])
      truth = np.array([rows[0][i]['emotion'] for i in known])
      before, *after = (np.array([r[column] for r in system]) for system in (
          [originals[files[i]] for i in known], *([r[i] for i in known] for r in rows)))
      drawn = [speakers.degradation(truth, before, a, macro=True) for a in after]
      results.append((f'MEDR % ({judge})', *_difference(speakers, drawn, -1)))
  columns = {f'{j}_agreement': (f'agreement ({j})', 1) for j in judges}
  columns |= {'all_agreement': ('agreement (mean of judges)', 1)} if len(judges) > 1 else {}
  columns |= {name: (heading, sign) for name, (heading, sign, _) in COLUMNS.items()}
  for name, (heading, sign) in columns.items():
    parts = ('word_errors', 'words') if name == 'wer' else (name,)
    known = [i for i, pair in enumerate(zip(*rows)) if all(r.get(parts[0]) not in (None, '') for r in pair)]
    if known:
      speakers = Speakers([rows[0][i] for i in known])
      try:
        drawn = [speakers.ratios(*(np.array([float(r[i][p]) for i in known]) for p in parts)) for r in rows]
      except ValueError as e:
        raise ValueError(f'column {name}: {e}') from e
      results.append((heading, *_difference(speakers, drawn, sign)))
  return results


def _mean_agreement(row, judges):
  """Share of the judges who predict for a row what they do for the original; '' where one is missing."""
  of_judges = [row.get(f'{judge}_agreement') for judge in judges]
  return '' if not judges or {None, ''} & set(of_judges) else np.mean([float(a) for a in of_judges])


def _difference(speakers, drawn, sign):
  """Means of both, and the interval of the first minus the second."""
  between = speakers.interval(drawn[0] - drawn[1])
  return drawn[0][0], drawn[1][0], between and between | {'sign': sign, 'speakers': speakers.count}


def table(results, first, second):
  """Markdown of `compare`'s results; without intervals where so few speakers would have misleading ones."""
  lines = [f'| | {first} | {second} | difference | |', '|---|---|---|---|---|']
  for heading, a, b, d in results:
    if d is None:
      continue
    said = f'too few speakers to tell ({d["speakers"]})'
    if d['low'] is not None:
      ends = d['sign'] * d['low'], d['sign'] * d['high']
      said = 'better' if min(ends) > 0 else 'worse' if max(ends) < 0 else ''
    lines.append(f'| {heading} | {a:.4g} | {b:.4g} | {text(d, "+.3g")} | {said} |')
  return '\n'.join(lines)
