"""Tables and picture of an ablation: means over seeds, and what each variant adds to the one before it."""

import functools

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.evaluation.compare import differences, read_files
from affectcodec_jax.evaluation.statistics import text
from affectcodec_jax.evaluation.summary import COLUMNS

SOUND = ('f0_correlation', 'pesq', 'estoi', 'visqol', 'mel')


def rates(results):
  """The codec's rates in kbit/s."""
  first = next(iter(next(iter(results.values())).values()))
  return [r['kbps'] for r in first['systems'].values() if r['system'] == 'affectcodec']


def value(result, kbps, metric):
  """A run's mean of a metric at a rate; NaN where it was not measured."""
  m = result['systems'][f'affectcodec {kbps:g}']['scores'].get(metric)
  return m['mean'] if m else float('nan')


def columns(results):
  """{heading: (metric, digits)}: emotion by each judge that there was, then `SOUND`."""
  judges = next(iter(next(iter(results.values())).values()))['judges']
  return ({f'MEDR % ({j})': (f'{j}_macro', 1) for j in judges}
          | {f'agreement ({j})': (f'{j}_agreement', 3) for j in judges}
          | {f'variation ({j})': (f'{j}_variation', 3) for j in judges}
          | {COLUMNS[name][0]: (name, COLUMNS[name][2]) for name in SOUND})


def make_table(results):
  """A Markdown table: a row a rate and variant, mean over seeds and half the range between them."""
  metrics = columns(results)
  lines = ['| kbps | variant | ' + ' | '.join(metrics) + ' |', '|---' * (2 + len(metrics)) + '|']
  for kbps in rates(results):
    for variant, runs in results.items():
      cells = []
      for metric, digits in metrics.values():
        values = [value(r, kbps, metric) for r in runs.values()]
        spread = f' ± {(max(values) - min(values)) / 2:.{digits}f}' if len(values) > 1 else ''
        cells.append(f'{sum(values) / len(values):.{digits}f}{spread}')
      lines.append(f'| {kbps:g} | {variant} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def plot(results, path):
  """Draws emotion and sound over the rate, a line a variant."""
  from affectcodec_jax.evaluation.charts import require_matplotlib
  try:
    plt = require_matplotlib()
  except UserError as e:
    print(f'no plot: {e}')
    return
  metrics = columns(results)
  shown = [c for c in metrics if c.startswith(('agreement', 'PESQ', 'ESTOI', 'mel'))]
  figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.6), constrained_layout=True)
  for axis, column in zip(axes, shown):
    for variant, runs in results.items():
      values = [[value(r, kbps, metrics[column][0]) for kbps in rates(results)] for r in runs.values()]
      means = [sum(v) / len(v) for v in zip(*values)]
      spread = [(max(v) - min(v)) / 2 for v in zip(*values)]
      axis.errorbar(rates(results), means, yerr=spread, marker='o', capsize=3, label=variant)
    axis.set_title(column)
    axis.set_xscale('log', base=2)
    axis.set_xticks(rates(results), [f'{k:g}' for k in rates(results)])
    axis.minorticks_off()
    axis.set_xlabel('kbps')
    axis.grid(alpha=0.3)
  axes[0].legend()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def steps(folder, results):
  """Each variant less the one before it, on the same files and seeds.

  Args:
    folder: of the ablation; scores of the files are read from `VARIANT/SEED/test/files.csv`.
    results: {variant: {seed: results of `evaluate`}}.

  Returns:
    [{'kbps', 'variant', 'before', 'differences': {heading: {'mean', 'low', 'high', 'sign', 'speakers',
    'seeds'}}}]: means over seeds, 95 % intervals over speakers, and the difference with each seed.
  """
  @functools.cache  # a variant is compared with its neighbours, and its originals are those of every rate
  def rows(variant, seed, label):
    files = read_files(folder / variant / str(seed) / 'test' / 'files.csv', label)
    return {(seed, file): row for file, row in files.items()}

  found = []
  for kbps in rates(results):
    for before, variant in zip(list(results), list(results)[1:]):
      of_seeds = [[rows(v, seed, label) for v, label in (
          (variant, f'affectcodec {kbps:g}'), (before, f'affectcodec {kbps:g}'), (variant, 'original'))]
                  for seed in results[variant]]
      joined = [{k: r for part in parts for k, r in part.items()} for parts in zip(*of_seeds)]
      single = [{name: d['mean'] for name, _, _, d in differences(*parts) if d} for parts in of_seeds]
      found.append({'kbps': kbps, 'variant': variant, 'before': before, 'differences': {
          name: d | {'seeds': [s.get(name) for s in single]}
          for name, _, _, d in differences(*joined) if d}})
  return found


def steps_table(found):
  """Markdown of `steps`: bold where the interval leaves zero out and every seed has the same sign."""
  headings = list(dict.fromkeys(name for step in found for name in step['differences']))
  lines = ['| kbps | variant less the one before | ' + ' | '.join(headings) + ' |',
           '|---' * (2 + len(headings)) + '|']
  for step in found:
    cells = [_cell(step['differences'].get(name)) for name in headings]
    lines.append(f'| {step["kbps"]:g} | {step["variant"]} - {step["before"]} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _cell(d):
  if d is None:
    return ''
  sure = d['low'] is not None and d['low'] * d['high'] > 0 and all(
      s is not None and s * d['mean'] > 0 for s in d['seeds'])
  return f'**{text(d, "+.3g")}**' if sure else text(d, '+.3g')
