"""One HTML page of an evaluation that holds all it shows: curves, tables, sound and pictures."""

import io
import logging
import pathlib

import soundfile

from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import describe, require_extra
from affectcodec_jax.common.files import write_whole
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.evaluation import charts, prosody
from affectcodec_jax.evaluation.metrics import METRICS
from affectcodec_jax.evaluation.statistics import FEWEST
from affectcodec_jax.evaluation.summary import COLUMNS, JUDGE_COLUMNS, count, labelled_emotions, left_out

EMOTION_CURVES = ('f0_correlation', 'f0_rmse', 'egemaps_drift', 'energy_correlation')
QUALITY_CURVES = ('pesq', 'estoi', 'visqol', 'distillmos', 'wer', 'speaker_resemblyzer', 'mel',
                  'voicing_error')
HEADLINES = ('all_macro', 'all_agreement', 'network_agreement', 'f0_correlation', 'pesq', 'estoi',
             'visqol', 'speaker_resemblyzer', 'wer')


def write_report(path, results, rows, systems, read, num_clips):
  """Writes the page.

  Args:
    path: where.
    results: of `evaluate`.
    rows: of `summary.make_rows`, judged.
    systems: to run over the clips that are shown.
    read: a file's name to its item.
    num_clips: files to show and play.

  Raises:
    UserError: matplotlib or jinja2 is not installed.
  """
  jinja2 = require_extra('jinja2')
  environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                   undefined=jinja2.StrictUndefined)
  template = environment.from_string((pathlib.Path(__file__).parent / 'report.html').read_text())
  present = {name for r in results['systems'].values() for name, s in r['scores'].items() if s}
  few, hidden = results['speakers'] < FEWEST, left_out(results)
  order = [c for c in columns(results) if c in present - hidden]
  names = list(dict.fromkeys(r['system'] for r in results['systems'].values()))
  page = template.render(
      results=results, columns={c: columns(results)[c] for c in order}, emotions=EMOTIONS,
      few=few, confusion=not few and labelled_emotions(results) > 1, count=count,
      cell=cell,
      series=[n for n in names if n != 'original'], headlines=headlines(results, order),
      emotion_curves=curves(results, [*judge_curves(results), *EMOTION_CURVES], order),
      quality_curves=curves(results, QUALITY_CURVES, order), bars=[] if few else bars(results),
      best=best_of(results, order), clips=clips(rows, systems, read, num_clips),
      tested=tested_labels(results),
      metrics={k: (v, METRICS[k].licence if k in METRICS else '') for k, v in results['metrics'].items()})
  write_whole(path, page.encode('utf-8', 'replace'))  # a file's name need not be UTF-8


def tested_labels(results):
  """Labels of the codec under test, one a rate."""
  return [k for k, r in results['systems'].items() if r['system'] == 'affectcodec']


def columns(results):
  """{metric: (heading, sense, digits)} of all that results may hold, emotion first."""
  judges = results['judges']
  found = {f'all_{k}': (f'{JUDGE_COLUMNS[k][0]}, all judges', *JUDGE_COLUMNS[k][1:])
           for k in JUDGE_COLUMNS if k != 'accuracy' and len(judges) > 1}
  found |= {f'{j}_{k}': (f'{v[0]} ({j})', *v[1:]) for j in judges for k, v in JUDGE_COLUMNS.items()}
  squares = {k for r in results['systems'].values() for k in r['scores'] if k.endswith(' MSE')}
  return found | {k: (k, -1, 4) for k in sorted(squares)} | COLUMNS


def judge_curves(results):
  """The judges' metrics that are drawn."""
  first = ['all_macro'] if len(results['judges']) > 1 else []
  return first + [f'{j}_{k}' for j in results['judges'] for k in ('agreement', 'variation')]


def cell(score, digits):
  """'0.812' and its interval, if it has one, '0.790 … 0.830'; '–' of none."""
  if not score:
    return '–', ''
  if score['low'] is None:
    return f'{score["mean"]:.{digits}f}', ''
  return f'{score["mean"]:.{digits}f}', f'{score["low"]:.{digits}f} … {score["high"]:.{digits}f}'


def curves(results, metrics, present):
  """{metric: SVG} of those that were measured."""
  headings, drawn = columns(results), {}
  for metric in metrics:
    if metric in present:
      points = {}
      for r in results['systems'].values():
        points.setdefault(r['system'], []).append((r['measured_kbps'], r['scores'].get(metric)))
      arrow = ' ↑' if headings[metric][1] > 0 else ' ↓'
      drawn[metric] = charts.rate_curve(points, headings[metric][0] + arrow)
  return drawn


def bars(results):
  """Pictures of agreement by emotion, one a judge: the codec's rates and the slowest peers, five in all."""
  shown = tested_labels(results)
  peers = [k for k, r in results['systems'].items() if r['system'] not in ('original', 'affectcodec')]
  slowest = sorted(peers, key=lambda k: results['systems'][k]['measured_kbps'] or 99)
  shown += slowest[:max(0, 5 - len(shown))]
  pictures = []
  for judge in results['judges']:
    scores = {label: {emotion: s.get(f'{judge}_agreement')
                      for emotion, s in results['systems'][label]['emotions'].items()} for label in shown}
    if shown and any(any(v.values()) for v in scores.values()):
      pictures.append((charts.emotion_bars(scores, f'classified as the original was ({judge})'), shown))
  return pictures


def headlines(results, present):
  """The codec's figures at each rate for the head: [(heading, sense, values)]."""
  tested, found = [results['systems'][k] for k in tested_labels(results)], []
  for metric in (m for m in HEADLINES if m in present and tested):
    heading, sense, digits = columns(results)[metric]
    values = [(f'{r["kbps"]:g}', *cell(r['scores'].get(metric), digits)) for r in tested]
    found.append((heading, sense, values))
  return found


def best_of(results, present):
  """{metric: labels whose mean is the best of all but the original}."""
  best = {}
  for metric in present:
    means = {k: r['scores'][metric]['mean'] for k, r in results['systems'].items()
             if r['system'] != 'original' and r['scores'].get(metric)}
    sense = columns(results)[metric][1]
    if means:
      top = max(sense * v for v in means.values())
      best[metric] = [k for k, v in means.items() if sense * v == top]
  return best


def clips(rows, systems, read, count):
  """Audio and pictures of a few files, of different emotions where there are."""
  candidates = [r for r in rows if r['system'] == 'original' and 1.0 <= r['seconds'] <= 6.0]
  candidates = candidates or [r for r in rows if r['system'] == 'original']
  firsts = {r['emotion']: r for r in reversed(candidates)}  # of each emotion
  chosen = sorted(firsts.values(), key=lambda r: r['emotion'], reverse=True)[:count]
  chosen += [r for r in candidates if r not in chosen][:count - len(chosen)]
  return [_clip(read(r['file']), systems) for r in chosen]


def _clip(item, systems):
  audio = at_codec_level(item['audio'])
  decodings = []
  for system in systems:
    try:
      decoded = system.run(audio)[0]
    except Exception as e:  # programs and networks of others fail in ways of their own; scores say so too
      logging.getLogger(__name__).warning('%s: not in the report (%s)', system.label, describe(e))
      continue
    decodings.append({'label': system.label, 'audio': flac(decoded),
                      'picture': charts.spectrogram_with_pitch(decoded, prosody.pitch(decoded))})
  return {'name': pathlib.Path(item['name']).name, 'speaker': item['speaker'], 'text': item['text'],
          'emotion': EMOTIONS[item['emotion']] if item['emotion'] >= 0 else '', 'decodings': decodings,
          'seconds': len(audio) / SAMPLE_RATE}


def flac(audio):
  """`[samples]` at 16 kHz as a data URL of a FLAC file."""
  file = io.BytesIO()
  soundfile.write(file, audio.clip(-1, 1), SAMPLE_RATE, format='FLAC', subtype='PCM_16')
  return charts.data_url('audio/flac', file.getvalue())
