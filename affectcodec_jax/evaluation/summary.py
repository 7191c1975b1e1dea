"""From the scores of clips to those of systems: means with intervals, degradation, confusion."""

import numpy as np

from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.evaluation.classifiers import DIMENSIONS
from affectcodec_jax.evaluation.statistics import FEWEST, Speakers, speaker_of

# What is a mean over clips: heading, +1 where more is better and -1 where less is, digits.
COLUMNS = {
    'f0_rmse': ('F0 RMSE, cents', -1, 0), 'f0_correlation': ('F0 correlation', 1, 3),
    'voicing_error': ('voicing error', -1, 3), 'energy_rmse': ('energy RMSE, dB', -1, 2),
    'energy_correlation': ('energy correlation', 1, 3), 'egemaps_drift': ('eGeMAPS drift, σ', -1, 3),
    'pesq': ('PESQ-WB', 1, 2), 'stoi': ('STOI', 1, 3), 'estoi': ('ESTOI', 1, 3),
    'visqol': ('ViSQOL', 1, 2), 'distillmos': ('DistillMOS', 1, 2), 'mel': ('mel distance', -1, 2),
    'stft': ('STFT distance', -1, 3), 'si_sdr': ('SI-SDR, dB', 1, 1),
    'speaker_resemblyzer': ('speaker (Resemblyzer)', 1, 3),
    'speaker_voicefilter': ('speaker (VoiceFilter)', 1, 3), 'wer': ('WER', -1, 3),
}
# What a judge says: heading without its name, and the same.
JUDGE_COLUMNS = {'macro': ('MEDR %', -1, 1), 'weighted': ('WEDR %', -1, 1), 'accuracy': ('recall', 1, 3),
                 'agreement': ('agreement', 1, 3), 'variation': ('variation', -1, 3)}


def caveats(rows):
  """What rows of so few recordings do not tell, a sentence each; an empty list where there are enough."""
  originals = [r for r in rows if r['system'] == 'original']
  speakers = len(set(map(speaker_of, originals)))
  found = []
  if speakers < FEWEST:
    found.append(
        f'{count(len(originals), "file")} of {count(speakers, "speaker")}: these figures describe the '
        'recordings, not the codec. Intervals, which are over speakers, are left out below '
        f'{FEWEST} of them, and so is what counts clips or compares with their spread: agreement, recall, '
        'MEDR, WEDR, confusion, eGeMAPS drift.')
  elif not any(r['speaker'] for r in originals):
    found.append('Speakers are not known, so each file counts as one: where several are of one speaker, '
                 'intervals are too narrow.')
  if speakers >= FEWEST and len({r['emotion'] for r in originals} - {-1}) < 2:
    found.append('Fewer than two emotions are labelled: recall, MEDR, WEDR and confusion are left out.')
  return found


def left_out(results):
  """Columns that say nothing of so few speakers or labelled emotions, as `caveats` says."""
  few = results['speakers'] < FEWEST
  kinds = {'macro', 'weighted', 'accuracy'} if few or labelled_emotions(results) < 2 else set()
  kinds |= {'agreement'} if few else set()
  names = {f'{judge}_{kind}' for judge in [*results['judges'], 'all'] for kind in kinds}
  return names | ({'egemaps_drift'} if few else set())


def labelled_emotions(results):
  """How many emotions the recordings have labels of."""
  return len(results['systems']['original']['emotions'])


def count(number, noun):
  """'1 file', '2 files'."""
  return f'{number} {noun}{"" if number == 1 else "s"}'


def add_judgements(rows, judges, svm=None):
  """Completes rows by what needs the original or the whole set beside it.

  `JUDGE_agreement` (0 or 1) and `JUDGE_variation` (total variation distance of the posteriors, 0 to 1)
  against the original; `egemaps_drift`, the mean absolute shift of the 88 functionals in standard
  deviations of the originals; `svm`, posteriors of the SVM; squared changes of `MODEL valence` etc.

  Args:
    rows: of `make_rows`, those of the originals among them; changed in place.
    judges: names of the classifiers whose posteriors the rows hold.
    svm: a function of functionals `[n, 88]` to posteriors, or None.

  Returns:
    The judges that judged anything, 'svm' among them.
  """
  functionals = [r for r in rows if r.get('egemaps') is not None]
  if functionals:
    values = np.array([r['egemaps'] for r in functionals])
    if svm is not None:
      for row, posterior in zip(functionals, svm(values)):
        row['svm'] = posterior.tolist()
      judges = [*judges, 'svm']
    spread = values[[r['system'] == 'original' for r in functionals]].std(axis=0)
  originals = {r['file']: r for r in rows if r['system'] == 'original'}
  for row in rows:
    original = originals[row['file']]
    if row.get('egemaps') is not None and original.get('egemaps') is not None:
      shift = np.abs(np.subtract(row['egemaps'], original['egemaps']))
      moves = spread > 0
      row['egemaps_drift'] = float(np.mean(shift[moves] / spread[moves])) if moves.any() else None
    for judge in judges:
      if row.get(judge) is not None and original.get(judge) is not None:
        row[f'{judge}_predicted'] = int(np.argmax(row[judge]))
        row[f'{judge}_agreement'] = float(np.argmax(row[judge]) == np.argmax(original[judge]))
        row[f'{judge}_variation'] = 0.5 * float(np.abs(np.subtract(row[judge], original[judge])).sum())
    for name in [k for k in row if k.rpartition(' ')[2] in DIMENSIONS]:
      if row[name] is not None and original.get(name) is not None:
        row[f'{name} MSE'] = (row[name] - original[name]) ** 2
  return [j for j in judges if any(f'{j}_predicted' in r for r in rows)]


def make_rows(item, records):
  """One flat row a system of what `scoring` measured of an item."""
  about = {'file': item['name'], 'emotion': item['emotion'], 'seconds': len(item['audio']) / SAMPLE_RATE}
  about |= {k: item[k] for k in ('speaker', 'corpus', 'gender', 'lang')}
  rows = []
  for label, record in records.items():
    name, _, kbps = label.rpartition(' ') if ' ' in label else (label, '', '0')
    scores = {k: v for values in record['scores'].values() for k, v in values.items()}
    rows.append(about | {'system': name, 'kbps': float(kbps), 'label': label, 'bits': record['bits'],
                         'problems': record['problems'], 'codes': record.get('codes')} | scores)
  return rows


def failures(rows, judges):
  """{score: {label of a system: files}} of files that have a score through other systems and not this one.

  A system that has no such score of any file did not fail.
  """
  return {name: counts for name, lacking in _lacking(rows, judges).items()
          if (counts := {label: len(files) for label, files in lacking.items() if files})}


def _lacking(rows, judges):
  """{score: {label: set of files}}, as `failures`."""
  names = ['words' if name == 'wer' else name for name in COLUMNS]
  names += [f'{judge}_predicted' for judge in judges]
  names += sorted({k for r in rows for k in r if k.endswith(' MSE')})
  lacking = {}
  for name in names:
    files = {}
    for r in rows:
      if r.get(name) is not None:
        files.setdefault(r['label'], set()).add(r['file'])
    every = set().union(*files.values())
    lacking[name] = {label: every - have for label, have in files.items()}
  return lacking


def _paired(rows, judges):
  """Copies of rows without the scores of files that failed in another system: all are of the same files."""
  left_out = {name: set().union(*lacking.values()) for name, lacking in _lacking(rows, judges).items()}
  parts = {f'{j}_predicted': [f'{j}_{k}' for k in ('predicted', 'agreement', 'variation')] for j in judges}
  parts['words'] = ['words', 'word_errors']
  return [r | {part: None for name, files in left_out.items() if r['file'] in files
               for part in parts.get(name, [name])} for r in rows]


def summarise(rows, judges):
  """{label: results} of every system.

  Means are over the files that a score could be had of through every system (`failures`).

  Results: `system`, `kbps`, `measured_kbps`, `scores` over all clips, `emotions` and `groups` (by corpus
  and gender) of subsets, `confusion` `[true][predicted]` by judge, `problems` by metric with their count.
  """
  results = {}
  rows = _paired(rows, judges)
  originals = {r['file']: r for r in rows if r['system'] == 'original'}
  for label in dict.fromkeys(r['label'] for r in rows):
    of_system = [r for r in rows if r['label'] == label]
    decoded = [r for r in of_system if r['bits'] is not None]
    emotions = {e: [r for r in of_system if r['emotion'] == i] for i, e in enumerate(EMOTIONS)}
    groups = {f'{key} {value}': [r for r in of_system if r[key] == value]
              for key in ('corpus', 'gender') for value in sorted({r[key] for r in of_system} - {''})}
    problems = {}
    for r in of_system:
      for metric, text in r['problems'].items():
        problems.setdefault(metric, {'count': 0, 'first': f'{r["file"]}: {text}'})['count'] += 1
    results[label] = {
        'system': of_system[0]['system'], 'kbps': of_system[0]['kbps'],
        'measured_kbps': (sum(r['bits'] for r in decoded) / sum(r['seconds'] for r in decoded) / 1000
                          if decoded else None),
        'scores': subset_scores(of_system, originals, judges),
        'emotions': {k: subset_scores(v, originals, judges) for k, v in emotions.items() if v},
        'groups': {k: subset_scores(v, originals, judges) for k, v in groups.items()},
        'confusion': {j: confusion(of_system, j) for j in judges}, 'problems': problems}
  return results


def subset_scores(rows, originals, judges):
  """{metric: {'mean', 'low', 'high', 'clips'} or None} of one system's rows.

  Bounds are None where fewer than `FEWEST` speakers have the score.
  """
  speakers = Speakers(rows)
  scores = {}
  for name in COLUMNS:
    if name == 'wer':
      known = np.array([r.get('words') is not None for r in rows])
      errors, said = (np.array([r.get(k) or 0 for r in rows], np.float64) for k in ('word_errors', 'words'))
      scores['wer'] = _counted(speakers.ratio(errors, said), known)
    else:
      scores[name] = _mean(speakers, rows, name)
  for name in sorted({k for r in rows for k in r if k.endswith(' MSE')}):
    scores[name] = _mean(speakers, rows, name)
  for judge in judges:
    for name in ('agreement', 'variation'):
      scores[f'{judge}_{name}'] = _mean(speakers, rows, f'{judge}_{name}')
    known = [r for r in rows if _has_label(r, judge)]
    if known:
      drawn = Speakers(known)
      truth, after = (np.array([r[k] for r in known]) for k in ('emotion', f'{judge}_predicted'))
      count = np.ones(len(known), bool)
      scores[f'{judge}_accuracy'] = _counted(drawn.interval(drawn.recall(truth, after, macro=True)), count)
      for name in ('macro', 'weighted'):
        scores[f'{judge}_{name}'] = _degradation(known, originals, [judge], name)
  if len(judges) > 1:  # the mean over judges, as in the paper
    for name in ('agreement', 'variation'):
      of_judges = [[r.get(f'{judge}_{name}') for judge in judges] for r in rows]
      values = np.array([np.nan if None in v else np.mean(v) for v in of_judges], np.float64)
      scores[f'all_{name}'] = _counted(speakers.ratio(values), np.isfinite(values))
    known = [r for r in rows if all(_has_label(r, judge) for judge in judges)]
    for name in ('macro', 'weighted') if known else ():
      scores[f'all_{name}'] = _degradation(known, originals, judges, name)
  return scores


def _degradation(rows, originals, judges, name):
  """'macro' or 'weighted' degradation of recall, the mean over judges who all tell these rows."""
  speakers, truth = Speakers(rows), np.array([r['emotion'] for r in rows])
  lost = [speakers.degradation(truth, np.array([originals[r['file']][f'{judge}_predicted'] for r in rows]),
                               np.array([r[f'{judge}_predicted'] for r in rows]), macro=name == 'macro')
          for judge in judges]
  return _counted(speakers.interval(np.mean(lost, axis=0)), np.ones(len(rows), bool))


def _has_label(row, judge):
  """Whether the judge classified the clip, its emotion is known, and they speak of the same emotions."""
  return (row['emotion'] >= 0 and row.get(f'{judge}_predicted') is not None
          and f'{judge}_labels' not in row)


def _mean(speakers, rows, name):
  values = np.array([np.nan if r.get(name) is None else r[name] for r in rows], np.float64)
  return _counted(speakers.ratio(values), np.isfinite(values))


def _counted(interval, known):
  return interval and interval | {'clips': int(known.sum())}


def confusion(rows, judge):
  """Counts `[true][predicted]` of the clips with a known emotion."""
  table = np.zeros((len(EMOTIONS), len(EMOTIONS)), np.int64)
  for r in rows:
    if _has_label(r, judge):
      table[r['emotion'], r[f'{judge}_predicted']] += 1
  return table.tolist()
