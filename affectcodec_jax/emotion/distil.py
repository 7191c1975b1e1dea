"""Trains a student: a small network that guesses a teacher's features, so that encoding needs no teacher.

  python -m affectcodec_jax.emotion.distil --config configs/student.py --workdir runs/student \
      --config.data.source=folder --config.data.path=SPEECH/manifest.jsonl

Any teacher will do (`teacher.kind`, `teacher.path`). Writes WORKDIR/student.safetensors, to be named in
`teacher.student` of a codec's configuration, WORKDIR/metrics.jsonl and WORKDIR/results.json.
"""

import sys

from affectcodec_jax.common.errors import UserError, run_command


def main(argv=None):
  """Entry point; returns the exit status."""
  return run_command(lambda: _run(argv or sys.argv))


def _run(argv):
  from affectcodec_jax import config as config_lib
  from affectcodec_jax.training.fit import FIT_FIELDS
  config, workdir = config_lib.parse_args(argv, __doc__)
  config_lib.require(config, {
      'model': ('strides', 'compute_dtype'), 'teacher': ('kind', 'dim', 'path'),
      'student': ('width', 'depth'), 'data': ('source', 'crop_seconds'), 'train': FIT_FIELDS},
      'this configuration')
  distil(config, workdir or 'runs/student')


def distil(config, workdir):
  """Trains, scores and writes the student that `config` describes."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from affectcodec_jax.api import use_compilation_cache
  from affectcodec_jax.common.files import make_folder, write_json
  from affectcodec_jax.config import crop_samples, save_config
  from affectcodec_jax.data import pipeline
  from affectcodec_jax.emotion.compact import Student
  from affectcodec_jax.emotion.teachers import teacher_features
  from affectcodec_jax.inference import weights
  from affectcodec_jax.training.fit import fit

  use_compilation_cache()
  workdir = make_folder(workdir)
  if (workdir / 'checkpoints').exists():
    raise UserError(f'{workdir} holds a run of the codec; give another --workdir')
  c, t = config.data, config.train
  frozen = {'teacher': weights.load_teacher(config, config.teacher.path)}
  model = Student(config.teacher.dim, config.student.width, config.student.depth)
  base = jax.random.PRNGKey(config.seed)
  params = jax.jit(model.init)(base, jnp.zeros((1, 6400)))['params']
  source = pipeline.make_source(c, c.train_split, config.seed)
  held_out = pipeline.make_source(c, c.eval_split, config.seed)
  iterator = pipeline.make_iterator(
      source, batch_size=t.batch_size, crop_samples=crop_samples(config), seed=config.seed,
      gain_db=c.gain_db, num_workers=c.num_workers)

  def loss_fn(params, batch, rng):
    del rng  # nothing is random but the crops
    target = teacher_features(config, frozen, batch['audio'])
    guess = model.apply({'params': params}, batch['audio'])
    return jnp.mean((guess - target) ** 2) / jnp.mean(jnp.var(target, axis=(0, 1)))

  save_config(workdir / 'config.json', config)
  with open(workdir / 'metrics.jsonl', 'w') as log:
    params = fit(loss_fn, params, iterator, t, base, log)
  weights.save_params(workdir / 'student.safetensors', params, np.float16)
  frozen['student'] = weights.load_student(config, workdir / 'student.safetensors')
  results = {'parameters': sum(x.size for x in jax.tree.leaves(params)),
             'teacher_parameters': sum(x.size for x in jax.tree.leaves(frozen['teacher'])),
             'split': c.eval_split} | evaluate_student(config, frozen, held_out)
  write_json(workdir / 'results.json', results)
  print(f'on {c.eval_split}: {results["explained"]:.3f} of the variance of the features, cosine '
        f'{results["cosine"]:.3f}')
  print(f'student: {workdir}/student.safetensors')


def evaluate_student(config, frozen, source, count=200):
  """How near a student comes to its teacher on up to `count` clips spread over a source.

  Returns:
    `explained`: share of the features' variance over frames; `cosine`: mean over frames.
  """
  import jax
  import numpy as np

  from affectcodec_jax.emotion.judges import padded_clip
  from affectcodec_jax.emotion.teachers import encoder_features, teacher_features
  both = jax.jit(lambda audio, mask: (teacher_features(config, frozen, audio, mask)[0],
                                      encoder_features(config, frozen, audio, mask)[0]))
  targets, guesses = [], []
  for i in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
    item = source[int(i)]
    if item is not None:
      audio, mask = padded_clip(item['audio'])
      target, guess = both(audio, mask)
      targets.append(np.asarray(target)[mask[0]])
      guesses.append(np.asarray(guess)[mask[0]])
  target, guess = np.concatenate(targets), np.concatenate(guesses)  # [frames, dim]
  norms = np.linalg.norm(target, axis=1) * np.linalg.norm(guess, axis=1)
  return {'explained': float(1 - ((guess - target) ** 2).mean() / target.var(axis=0).mean()),
          'cosine': float(((guess * target).sum(axis=1) / norms).mean())}


if __name__ == '__main__':
  sys.exit(main())
