"""One picture for each analysis."""

import numpy as np

from affectcodec_jax.evaluation.charts import require_matplotlib
from affectcodec_jax.evaluation.statistics import spread

NAMES = {'emotion': 'emotion digits', 'emotion_joint': 'emotion codes', 'acoustic': 'acoustic digits',
         'code': 'codes'}


def _figure(columns, rows=1, width=4.4, height=3.6, **kwargs):
  return require_matplotlib().subplots(rows, columns, figsize=(width * columns, height * rows),
                                       squeeze=False, constrained_layout=True, **kwargs)


def _save(figure, path):
  for axis in figure.axes:
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=130)
  require_matplotlib().close(figure)


def _line(axis, scores, **style):
  """Means over stages 1, 2, … with their intervals shaded."""
  x = range(1, len(scores) + 1)
  line, = axis.plot(x, [s['mean'] for s in scores], marker='o', markersize=3, **style)
  means, (below, above) = np.array([s['mean'] for s in scores]), spread(scores)
  axis.fill_between(x, means - below, means + above, alpha=0.12, color=line.get_color(), linewidth=0)


def plot_leakage(runs, path):
  """`runs`: {name: what `leakage.leakage` returns}."""
  figure, ((bars, stages, bands),) = _figure(3)
  for i, (name, run) in enumerate(runs.items()):
    bars.barh(i, run['emotion']['mean'], xerr=spread([run['emotion']]), color=f'C{i}', capsize=3,
              height=0.6)
    bars.plot(run['shuffled']['mean'], i, 'kx', linestyle='', label=None if i else 'frames shuffled')
    bars.plot(run['acoustic']['mean'], i, 'kd', linestyle='', label=None if i else 'from acoustic digits')
    _line(stages, run['stages'], color=f'C{i}', label=name)
    bands.plot(range(1, len(run['bands']) + 1), run['bands'], color=f'C{i}')
  bars.set_yticks(range(len(runs)), list(runs))
  bars.set_ylim(len(runs) - 0.4, -0.9)  # the first run on top, room for the legend
  bars.legend(loc='upper center', fontsize=8, frameon=False, ncols=2)
  bars.set_xlabel('$R^2$')
  bars.axvline(0, color='k', linewidth=0.6)
  stages.set_xlabel('stages, from the first')
  stages.set_xticks(range(1, len(next(iter(runs.values()))['stages']) + 1))
  stages.legend(fontsize=8, frameon=False)
  bands.set_xlabel('mel band, low to high')
  for axis in (stages, bands):
    axis.set_ylabel('$R^2$')
    axis.axhline(0, color='k', linewidth=0.6)
  titles = 'log-mel predicted from all emotion digits', 'by number of stages', 'by mel band, all stages'
  for axis, title in zip((bars, stages, bands), titles):
    axis.set_title(title, fontsize=10)
  _save(figure, path)


def plot_stages(results, path):
  """`results`: what `stages.stage_probes` returns."""
  figure, axes = _figure(2, 2, height=3.2, sharex=True, sharey='row')
  titles = {'alone': 'one stage alone', 'up_to': 'all stages up to it'}
  for row, (task, scores) in zip(axes, results.items()):
    for axis, what in zip(row, titles):
      for i, kind in enumerate(k for k in NAMES if k in scores):
        _line(axis, scores[kind][what], color=f'C{i}', label=NAMES[kind])
      axis.axhline(scores['chance'], color='k', linestyle=':', linewidth=1, label='chance')
    row[0].set_ylim(bottom=0)
    row[0].set_ylabel(f'{task}: mean recall')
  for i, what in enumerate(titles):
    axes[0, i].set_title(titles[what], fontsize=10)
    axes[1, i].set_xlabel('stage')
    axes[1, i].set_xticks(range(1, len(results['emotion']['acoustic']['alone']) + 1))
  figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=4, fontsize=9,
                frameon=False)
  _save(figure, path)


def plot_usage(results, path):
  """`results`: what `usage.usage` returns."""
  blocks = list(results['stages'][0])
  figure, (axes,) = _figure(len(blocks), width=5)
  for axis, block in zip(axes, blocks):
    stages = [s[block] for s in results['stages']]
    bars = {'entropy': [s['corrected_bits'] for s in stages]}
    if block == 'emotion':
      bars['given the frame before'] = [s['corrected_conditional_bits'] for s in stages]
    width = 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
      offset = (i - (len(bars) - 1) / 2) * width
      axis.bar([k + 1 + offset for k in range(len(stages))], values, width, label=name)
    axis.axhline(stages[0]['nominal_bits'], color='k', linestyle='--', linewidth=1, label='nominal')
    axis.set_ylim(0, 1.25 * stages[0]['nominal_bits'])  # room for the legend
    axis.set_xticks(range(1, len(stages) + 1))
    axis.set_xlabel('stage')
    axis.set_ylabel('bits a frame')
    axis.set_title(NAMES[block].replace('digits', 'block'), fontsize=10)
    axis.legend(fontsize=8, frameon=False, ncols=3, loc='upper center')
  _save(figure, path)


def plot_transplant(results, path):
  """`results`: what `transplant.transplant` returns."""
  names = {'emotion': 'emotion block of A', 'control': 'of another clip\nlike B (control)',
           'other_speaker': "of another speaker\nwith A's emotion", 'acoustic': 'acoustic block of A',
           'donor': 'both: A itself'}
  figure, axes = _figure(len(results['judges']), height=3, sharey=True, sharex=True)
  for axis, (judge, variants) in zip(axes[0], results['judges'].items()):
    for i, (what, label) in enumerate((('target', "A's emotion"), ('receiver', "B's emotion"))):
      for j, name in enumerate(names):
        score = variants[name][what]
        axis.barh(j + 0.38 * i, score['mean'], 0.36, xerr=spread([score]), color=f'C{i}', capsize=2,
                  label=None if j else label)
    axis.axvline(0, color='k', linewidth=0.6)
    axis.set_title(judge, fontsize=10)
    axis.set_xlabel('change of probability in B')
  axes[0, 0].set_yticks([j + 0.19 for j in range(len(names))], list(names.values()), fontsize=9)
  axes[0, 0].invert_yaxis()
  axes[0, 0].legend(fontsize=8, frameon=False)
  _save(figure, path)


def plot_rate_distortion(results, path):
  """`results`: what the command writes, of which 'cells', 'hull', 'knee' and 'num_stages' are used."""
  figure, ((axis,),) = _figure(1, width=6.6, height=4.6)
  cells = results['cells']
  hull = [cells[i] for i in results['hull']]
  axis.plot([c['bits'] for c in hull], [c['error'] for c in hull], color='0.6', linewidth=1, zorder=1,
            label='lower convex hull')
  for i, levels in enumerate(sorted({c['levels'] for c in cells})):
    of = [c for c in cells if c['levels'] == levels]
    ranges = [(max(c['errors']) - min(c['errors'])) / 2 for c in of]
    axis.errorbar([c['bits'] for c in of], [c['error'] for c in of], yerr=ranges if any(ranges) else None,
                  color=f'C{i}', linestyle='', marker='os^Dv'[i % 5], markersize=6, label=f'L = {levels}')
    x, y, side = ((-5, -13, 'right'), (6, 5, 'left'), (7, -6, 'left'))[i % 3]  # like rates lie close by
    for c in of:
      axis.annotate(f'd={c["dimensions"]}', (c['bits'], c['error']), fontsize=8, color=f'C{i}',
                    xytext=(x, y), ha=side, textcoords='offset points')
  best = cells[results['knee']]
  axis.plot(best['bits'], best['error'], 'o', markersize=15, markerfacecolor='none', markeredgecolor='k',
            linestyle='', label=f'knee: d={best["dimensions"]}, L={best["levels"]}')
  axis.set_xlabel(f'bits a frame, {results["num_stages"]} stages')
  axis.set_ylabel('squared error of features / their variance')
  axis.margins(0.08)
  axis.legend(fontsize=9, frameon=False)
  _save(figure, path)
