"""Scores a codec on a set of files at every rate, beside other codecs on the same files.

Each file is brought to the codec's level, encoded once and decoded from every prefix of its tokens (with
`refine` it is encoded for every rate by itself); so do the peers at their rates. Writes OUT/results.json
(means, 95 % bootstrap intervals over speakers), OUT/files.csv (one row a file and system) and
OUT/report.html, a page that needs nothing else. Scores are kept: the same command goes on where it
stopped, and peers are not measured again for the next checkpoint. Packages of requirements-eval.txt that
are not installed are reported as absent.
"""

import os
import pathlib
import sys
import tempfile

from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.common import packaged, progress
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.evenly import evenly
from affectcodec_jax.common.places import cache_folder
from affectcodec_jax.evaluation.statistics import speaker_of


def evaluate(data, out, *, checkpoint='pretrained', split='test', limit=0, labelled=False, metrics=('all',),
             peers=(), refine=0, classifiers=(), judges=None, jobs=1, clips=4, report=True, cache=None):
  """Scores the files and writes the results.

  Args:
    data: a directory, a manifest or a recording.
    out: folder for the results.
    checkpoint: what `load` takes, or 'none': peers alone.
    split: of `data`, or 'all'.
    limit: at most so many files, evenly spread; 0 for all.
    labelled: only files with a known emotion.
    metrics: names, or 'all' or 'quick'.
    peers: codecs to compare with, as the command's help has them.
    refine: steps of the search for codes of the codec, for every rate by itself; 0 for none.
    classifiers: the user's own, as the command's help has them.
    judges: folder of `teacher judge`; None for the packaged ones.
    jobs: processes.
    clips: files to play and show in the report, if there is to be a `report`.
    cache: folder of scores; None for the user's cache folder.

  Raises:
    UserError: data, a checkpoint, a metric or a model that is not there or does not fit.
  """
  from affectcodec_jax.common.files import make_folder, write_json
  from affectcodec_jax.data.folder import FolderSource
  from affectcodec_jax.emotion.judges import EGEMAPS, svm_posteriors
  from affectcodec_jax.evaluation import facts, scoring, summary
  from affectcodec_jax.evaluation.classifiers import classifier_version
  from affectcodec_jax.inference.refine import check_steps

  if limit < 0 or jobs < 1 or clips < 0:
    raise UserError('--limit and --clips must be at least 0, --jobs at least 1')
  refine = check_steps(refine)
  out, cache = make_folder(out), make_folder(cache or default_cache())
  folder = pathlib.Path(judges or packaged.FOLDER)
  metrics, absent = choose_metrics(metrics, folder)
  models = {name: classifier_version(name) for name in classifiers}  # loaded now, not after an hour
  svm = None
  if 'egemaps' in metrics:
    try:
      svm = svm_posteriors(folder / EGEMAPS)
    except UserError as e:
      absent['svm'] = str(e)
  if judges and 'svm' in absent:
    raise UserError(f'--judges: {absent["svm"]}')
  if refine and checkpoint == 'none':
    raise UserError('--refine is for the codec that --checkpoint names')
  systems, codec, no_peers = scoring.make_systems(checkpoint, peers, refine)
  absent |= no_peers
  if len(systems) == 1:
    raise UserError('nothing to score: give a --checkpoint, or --peers that are installed')
  for name, why in absent.items():
    print(f'{name}: absent ({why})', file=sys.stderr)
  source = FolderSource(data, None if split == 'all' else split)
  chosen = choose_files(source, limit, labelled)
  if not chosen:
    raise UserError(f'{data}: no file of split {split} has a known emotion')
  places = {}  # where in the source a file is
  scored = scoring.score_files(_items(source, chosen, places), checkpoint, peers, refine, metrics,
                               str(folder), models, cache, jobs)
  rows, signal = [], []
  for item, records in progress.bar(scored, total=len(chosen), unit='file', smoothing=0):
    rows += summary.make_rows(item, records)
    if sum(map(len, signal)) < facts.SECONDS * SAMPLE_RATE:
      signal.append(at_codec_level(item['audio']))
  if not rows:
    raise UserError(f'{data}: no file of it could be read')
  names = [name for name in ('network', 'whisper_svm', *models)
           if any(r.get(name) is not None for r in rows)]
  names = summary.add_judgements(rows, names, svm)
  signal = facts.looped(signal)
  results = {
      'checkpoint': str(checkpoint), 'step': codec.step if codec else None, 'refine': refine,
      'split': split,
      'files': len({r['file'] for r in rows}), 'speakers': len(set(map(speaker_of, rows))),
      'seconds': sum(r['seconds'] for r in rows if r['system'] == 'original'),
      'skipped': source.skipped, 'judges': names, 'metrics': metrics | models, 'absent': absent,
      'limits': summary.caveats(rows), 'failures': summary.failures(rows, names),
      'systems': summary.summarise(rows, names)}
  for system in systems[1:]:
    results['systems'][system.label]['encode_and_decode'] = _time(system, signal, 1 if refine else 3)
  if codec:
    top = max((s for s in systems if s.name == 'affectcodec'), key=lambda s: s.kbps).label
    results['codec'] = facts.codec_facts(
        codec, signal, [r['codes'] for r in rows if r['label'] == top and r['codes']])
  write_rows(out / 'files.csv', rows)
  write_json(out / 'results.json', results)
  print(overview(results))
  if report:
    from affectcodec_jax.evaluation.report import write_report
    try:
      write_report(out / 'report.html', results, rows, systems, lambda name: source[places[name]], clips)
      print(f'report: {out / "report.html"}')
    except UserError as e:
      print(f'no report: {e}', file=sys.stderr)


def _items(source, chosen, places):
  """Yields the files that can be read, and keeps in `places` where each is, by its name."""
  for i in chosen:
    item = source[i]
    if item is not None:
      places[item['name']] = i
      yield item


def _time(system, signal, times):
  """Seconds that a system takes for a second of `signal`, with their range; None where it fails."""
  from affectcodec_jax.evaluation import facts
  try:  # a copy each time: the codec under test does not encode the same array twice
    return facts.real_time_factor(lambda: system.run(signal.copy()), len(signal) / SAMPLE_RATE, times)
  except Exception as e:  # of a peer; its scores say so too
    print(f'{system.label}: not timed ({type(e).__name__}: {e})', file=sys.stderr)
    return None


def default_cache():
  """Where scores are kept: in the user's cache folder; without one, where temporary files go."""
  fallback = os.path.join(tempfile.gettempdir(), f'affectcodec_jax-scores-{os.getuid()}')
  return cache_folder('scores') or fallback


def choose_metrics(names, folder=packaged.FOLDER):
  """({name: version}, {name: why it is absent}) of 'all', 'quick' or names, with the judges in a folder.

  Raises:
    UserError: no such metric, or one asked for by its name is not installed.
  """
  from affectcodec_jax.evaluation.metrics import METRICS, version
  every = {'all': list(METRICS), 'quick': [k for k, m in METRICS.items() if m.quick]}
  named = names[0] not in every
  if not named and len(names) > 1:
    raise UserError(f"--metrics {names[0]} stands alone; leave out {' '.join(names[1:])}")
  chosen = list(names) if named else every[names[0]]
  versions, absent = {}, {}
  for name in chosen:
    if name not in METRICS:
      raise UserError(f"no metric '{name}'; there are {', '.join(METRICS)}")
    try:
      versions[name] = version(METRICS[name], folder)
    except UserError as e:
      if named:
        raise
      absent[name] = str(e)
  return versions, absent


def choose_files(source, limit, labelled):
  """Numbers of the files to score, evenly spread over the split."""
  wanted = [i for i in range(len(source)) if not labelled or source.emotion(i) >= 0]
  return evenly(wanted, limit)


def write_rows(path, rows):
  """The scalar scores of every file and system as CSV."""
  import csv
  import io

  from affectcodec_jax.common.files import write_whole
  from affectcodec_jax.common.labels import EMOTIONS
  kept = [k for k in dict.fromkeys(k for r in rows for k in r)
          if k not in ('problems', 'codes') and not any(isinstance(r.get(k), list) for r in rows)]
  text = io.StringIO()
  writer = csv.DictWriter(text, kept, extrasaction='ignore')
  writer.writeheader()
  for row in rows:
    names = {k: EMOTIONS[v] if v >= 0 else '' for k, v in row.items() if k == 'emotion'
             or (k.endswith('_predicted') and k.replace('_predicted', '_labels') not in row)}
    writer.writerow(row | names)
  # A file's name need not be UTF-8, but a table has to be, and no two names may become one.
  write_whole(path, text.getvalue().encode('utf-8', 'backslashreplace'))


def overview(results):
  """The table that the command prints: a line a system."""
  from affectcodec_jax.evaluation.summary import count, left_out
  shown = {'measured': 'kbps', **{f'{j}_macro': f'MEDR {j}' for j in results['judges']},
           'all_agreement': 'agree', 'network_agreement': 'agree network', 'f0_correlation': 'F0 corr',
           'pesq': 'PESQ', 'estoi': 'ESTOI', 'visqol': 'ViSQOL', 'distillmos': 'DMOS', 'mel': 'mel',
           'speaker_resemblyzer': 'speaker', 'wer': 'WER'}
  shown = {k: v for k, v in shown.items() if k not in left_out(results)}
  files, speakers = count(results['files'], 'file'), count(results['speakers'], 'speaker')
  refined = f', codes refined by {results["refine"]} steps' if results.get('refine') else ''
  lines = [f'{files} of {speakers}, means{refined}; results.json has all that was measured',
           f'{"":18}' + ''.join(f'{h:>14}' for h in shown.values())]
  for label, r in results['systems'].items():
    cells = [f'{r["measured_kbps"]:.2f}' if r['measured_kbps'] else '']
    for name in list(shown)[1:]:
      score = r['scores'].get(name)
      cells.append(f'{score["mean"]:.3f}' if score else 'absent')
    lines.append(f'{label:18}' + ''.join(f'{c:>14}' for c in cells))
  problems = {f'{label}, {metric}: {p["count"]} files not scored, first {p["first"]}'
              for label, r in results['systems'].items() for metric, p in r['problems'].items()}
  failed = [f'{name}: left out for all systems where it failed in one: '
            + ', '.join(f'{count(n, "file")} of {label}' for label, n in of_systems.items())
            for name, of_systems in results['failures'].items()]
  return '\n'.join([*lines, *sorted(problems), *failed, *results['limits']])
