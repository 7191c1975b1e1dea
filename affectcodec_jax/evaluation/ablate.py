"""Trains the ablation's variants for an equal number of steps and scores them side by side.

Variants are those of `--config` (see configs/ablation.py), each with every seed of `--seeds`, in
processes of their own, `--jobs` at a time. The same command continues where it was stopped and scores
what is finished. Writes OUT/table.md, OUT/results.json and OUT/ablation.png; the runs with their logs are
OUT/VARIANT/SEED.
"""

from concurrent.futures import ThreadPoolExecutor
import json
import os
import subprocess
import sys
import threading

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import make_folder, write_json, write_whole
from affectcodec_jax.common.workers import cores

_NO_EXTRAS = {'loss.multi_rate': 0.0, 'model.conditioning': False}
_DAC_RVQ = {  # what DAC's RVQ is known to work with, at the same rates: 10 bits a stage, 12 stages
    'model.quantizer': 'rvq', 'rates': (3, 6, 12), 'model.num_stages': 12,
    'model.emotion_levels': (2, 2), 'model.acoustic_levels': (4, 4, 4, 4),  # only their 1024 codes count
    'loss.commitment': 1.5,  # DAC's 0.25 a stage, and 1 for the codebook, of 6 stages in the mean
    'train.unquantized_steps': 0, 'train.rounding_steps': 0}  # its k-means is of the first batch
VARIANTS = {  # fields; from full_rfsq on, each differs from the one before it by what its name says
    'rvq': _NO_EXTRAS | _DAC_RVQ,
    'full_rfsq': _NO_EXTRAS | {'model.quantizer': 'full_rfsq'},
    'bd_rfsq': _NO_EXTRAS | {'model.quantizer': 'bd_rfsq'},
    'multi_rate': {'model.quantizer': 'bd_rfsq', 'loss.multi_rate': 1.0, 'model.conditioning': False},
    'cem': {'model.quantizer': 'bd_rfsq', 'loss.multi_rate': 1.0, 'model.conditioning': True},
}


def ablate(args):
  """Runs what is not yet there, then writes the tables; `args` are those of the command `ablate`."""
  if min(args.steps, args.jobs) < 1:
    raise UserError('--steps and --jobs must be at least 1')
  out = make_folder(args.out)
  todo = [(variant, seed) for seed in args.seeds for variant in args.variants]  # a seed at a time
  failed = threading.Event()

  def run(variant, seed):
    problem = None if failed.is_set() else _run_one(args, variant, seed, out / variant / str(seed))
    if problem:
      failed.set()  # what has not begun does not
    return problem

  with ThreadPoolExecutor(args.jobs) as pool:
    problems = [p for p in pool.map(run, *zip(*todo)) if p]
  if problems:
    raise UserError(problems[0])
  results = {variant: {seed: json.loads((out / variant / str(seed) / 'test' / 'results.json').read_text())
                       for seed in args.seeds} for variant in args.variants}
  summary = {'steps': args.steps, 'limit': args.limit, 'variants': results}
  write_json(out / 'results.json', summary)
  table = make_table(results)
  write_whole(out / 'table.md', (table + '\n').encode())
  print(table)
  _plot(results, out / 'ablation.png')


def _run_one(args, variant, seed, workdir):
  """Trains and scores one run; returns what went wrong, or None."""
  workdir.mkdir(parents=True, exist_ok=True)
  env = dict(os.environ)
  if args.jobs > 1:  # each run its share of the processors
    threads = max(1, cores() // args.jobs)
    env['XLA_FLAGS'] = (env.get('XLA_FLAGS', '') + ' --xla_cpu_multi_thread_eigen=false'
                        f' intra_op_parallelism_threads={threads}').strip()
    env['OMP_NUM_THREADS'] = str(threads)
  train = ['train', '--config', f'{args.config}:{variant}', '--workdir', workdir,
           f'--config.seed={seed}', f'--config.train.steps={args.steps}',
           f'--config.data.path={args.data}']
  score = ['evaluate', '--checkpoint', workdir, '--data', args.data, '--split', 'test', '--labelled',
           '--limit', str(args.limit), '--out', workdir / 'test', '--metrics', *args.metrics,
           '--peers', 'none', '--jobs', '1', '--no-report']
  if args.svm:
    score += ['--svm', args.svm]
  done, settings = workdir / 'test' / 'results.json', workdir / 'test' / 'settings.json'
  asked = {'data': str(args.data), 'steps': args.steps, 'limit': args.limit, 'metrics': list(args.metrics),
           'svm': str(args.svm or '')}
  if done.exists() and settings.exists() and json.loads(settings.read_text()) == asked:
    print(f'{variant}, seed {seed}: done', flush=True)
    return None
  for command in (train, score):
    print(f'{variant}, seed {seed}: {command[0]}', flush=True)
    with open(workdir / 'log.txt', 'a') as log:
      status = subprocess.run([sys.executable, '-m', 'affectcodec_jax', *map(str, command)], stdout=log,
                              stderr=log, env=env).returncode
    if status:
      return f'{variant}, seed {seed}: {command[0]} failed; see {workdir}/log.txt'
  if json.loads(done.read_text())['step'] != args.steps:  # asked to end, it saved and left
    return f'{variant}, seed {seed}: stopped before step {args.steps}; run the same command again'
  write_json(settings, asked)
  return None


def rates(results):
  """The codec's rates in kbit/s."""
  first = next(iter(next(iter(results.values())).values()))
  return [r['kbps'] for r in first['systems'].values() if r['system'] == 'affectcodec']


def value(result, kbps, metric):
  """A run's mean of a metric at a rate; NaN where it was not measured."""
  m = result['systems'][f'affectcodec {kbps:g}']['scores'].get(metric)
  return m['mean'] if m else float('nan')


def columns(results):
  """{heading: (metric, digits)}: emotion by each judge that there was, then sound."""
  judges = next(iter(next(iter(results.values())).values()))['judges']
  return ({f'MEDR % ({j})': (f'{j}_macro', 1) for j in judges}
          | {f'agreement ({j})': (f'{j}_agreement', 3) for j in judges}
          | {f'variation ({j})': (f'{j}_variation', 3) for j in judges}
          | {'F0 correlation': ('f0_correlation', 3), 'STOI': ('stoi', 3), 'mel distance': ('mel', 3)})


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


def _plot(results, path):
  from affectcodec_jax.evaluation.charts import require_matplotlib
  try:
    plt = require_matplotlib()
  except UserError as e:
    print(f'no plot: {e}')
    return
  metrics = columns(results)
  shown = [c for c in metrics if c.startswith(('MEDR', 'variation (network)', 'STOI', 'mel'))]
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
