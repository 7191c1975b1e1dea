"""Trains the ablation's variants for an equal number of steps and scores them side by side.

Variants are those of `--config` (see configs/ablation.py), each with every seed of `--seeds`, in
processes of their own, `--jobs` at a time. The same command continues where it was stopped and scores
what is finished. Writes OUT/table.md (means), OUT/steps.md (each variant against the one before it),
OUT/results.json and OUT/ablation.png; the runs with their logs are OUT/VARIANT/SEED.
"""

from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading

from affectcodec_jax.common import packaged
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import make_folder, write_json, write_whole
from affectcodec_jax.common.workers import cores
from affectcodec_jax.config import parse_args
from affectcodec_jax.data.folder import list_split
from affectcodec_jax.data.rows import list_digest
from affectcodec_jax.evaluation import ablation_table
from affectcodec_jax.evaluation.run import choose_metrics

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


def ablate(data, out, *, config='configs/ablation.py', variants=tuple(VARIANTS), seeds=(0, 1), steps=1000,
           metrics=('quick',), judges=None, limit=240, jobs=1):
  """Runs what is not yet there, then writes the tables.

  Args:
    data: a manifest.
    out: folder of the runs and the tables.
    config: a configuration file.
    variants: names of its variants, in the order of what each adds.
    seeds: of the training runs.
    steps: of each.
    metrics: as in `evaluate`.
    judges: as in `evaluate`.
    limit: as in `evaluate`.
    jobs: runs at a time.

  Raises:
    UserError: a run that failed or was asked to stop; says where its log is.
  """
  if min(steps, jobs) < 1:
    raise UserError('--steps and --jobs must be at least 1')
  out = make_folder(out)
  todo = [(variant, seed) for seed in seeds for variant in variants]  # a seed at a time
  training = {'config': str(config), 'data': str(data), 'steps': steps,
              'list_sha256': list_digest(list_split(data, None))}
  digests = {variant: _config_digest(config, variant) for variant in variants}
  versions, _ = choose_metrics(metrics, pathlib.Path(judges or packaged.FOLDER))
  scoring = {'limit': limit, 'metrics': versions, 'judges': str(judges or '')}
  failed = threading.Event()

  def run(variant, seed):
    problem = None if failed.is_set() else _run_one(
        out / variant / str(seed), variant, seed, training | {'config_sha256': digests[variant]}, scoring,
        jobs)
    if problem:
      failed.set()  # what has not begun does not
    return problem

  with ThreadPoolExecutor(jobs) as pool:
    problems = [p for p in pool.map(run, *zip(*todo)) if p]
  if problems:
    raise UserError(problems[0])
  results = {variant: {seed: json.loads((out / variant / str(seed) / 'test' / 'results.json').read_text())
                       for seed in seeds} for variant in variants}
  differences = ablation_table.steps(out, results)
  write_json(out / 'results.json', {'steps': steps, 'limit': limit, 'variants': results,
                                    'differences': differences})
  for name, text in (('table.md', ablation_table.make_table(results)),
                     ('steps.md', ablation_table.steps_table(differences))):
    write_whole(out / name, (text + '\n').encode())
    print(text)
  ablation_table.plot(results, out / 'ablation.png')


def _config_digest(config, variant):
  """Of a variant's whole configuration: a run of another one is not gone on with."""
  resolved, *_ = parse_args(['ablate', '--config', f'{config}:{variant}'], '')
  return hashlib.sha256(resolved.to_json(sort_keys=True).encode()).hexdigest()


def _run_one(workdir, variant, seed, training, scoring, jobs):
  """Trains one run and scores it, unless that was done with the same settings; returns what went wrong."""
  workdir.mkdir(parents=True, exist_ok=True)
  env = dict(os.environ)
  if jobs > 1:  # each run its share of the processors
    threads = max(1, cores() // jobs)
    env['XLA_FLAGS'] = (env.get('XLA_FLAGS', '') + ' --xla_cpu_multi_thread_eigen=false'
                        f' intra_op_parallelism_threads={threads}').strip()
    env['OMP_NUM_THREADS'] = str(threads)
  train = ['train', '--config', f'{training["config"]}:{variant}', '--workdir', workdir,
           f'--config.seed={seed}', f'--config.train.steps={training["steps"]}',
           f'--config.data.path={training["data"]}']
  score = ['evaluate', '--checkpoint', workdir, '--data', training['data'], '--split', 'test', '--labelled',
           '--limit', scoring['limit'], '--out', workdir / 'test', '--metrics', *scoring['metrics'],
           '--peers', 'none', '--jobs', '1', '--no-report']
  if scoring['judges']:
    score += ['--judges', scoring['judges']]
  trained, scored = workdir / 'trained.json', workdir / 'test' / 'scored.json'
  if trained.exists() and (before := json.loads(trained.read_text())) != training:
    if 'config_sha256' not in before:
      return f'{workdir} holds a run of an earlier release, which did not record its configuration; give ' \
             'another --out'
    changed = ', '.join(f'{k}={training[k]} (was {before.get(k)})' for k in training
                        if training[k] != before.get(k))
    return f'{workdir} holds a run with other settings, now {changed}; give another --out'
  write_json(trained, training)
  done = workdir / 'test' / 'results.json'
  if done.exists() and scored.exists() and json.loads(scored.read_text()) == scoring:
    print(f'{variant}, seed {seed}: done', flush=True)
    return None
  for command in (train, score):
    print(f'{variant}, seed {seed}: {command[0]}', flush=True)
    with open(workdir / 'log.txt', 'a') as log:
      status = subprocess.run([sys.executable, '-m', 'affectcodec_jax', *map(str, command)], stdout=log,
                              stderr=log, env=env).returncode
    if status:
      return f'{variant}, seed {seed}: {command[0]} failed; see {workdir}/log.txt'
  if json.loads(done.read_text())['step'] != training['steps']:  # asked to end, it saved and left
    return f'{variant}, seed {seed}: stopped before step {training["steps"]}; run the same command again'
  write_json(scored, scoring)
  return None
