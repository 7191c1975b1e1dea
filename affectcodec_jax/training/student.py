"""Trains a student: a small network that guesses a teacher's features, so that encoding needs no teacher.

Any teacher will do (`teacher.kind`, `teacher.path`). Writes WORKDIR/student.safetensors, to be named in
`teacher.student` of a codec's configuration, WORKDIR/metrics.jsonl and WORKDIR/results.json.
"""

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax import config as config_lib
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.evenly import evenly
from affectcodec_jax.common.files import write_json
from affectcodec_jax.config import crop_samples
from affectcodec_jax.data import pipeline
from affectcodec_jax.emotion.compact import Student
from affectcodec_jax.emotion.judges import first_seconds
from affectcodec_jax.emotion.teachers import encoder_features, teacher_features
from affectcodec_jax.inference import weights
from affectcodec_jax.training.fit import FIT_FIELDS, crops, open_workdir, save_network, train_network

# What is needed of a configuration.
FIELDS = {'model': ('compute_dtype',), 'teacher': ('kind', 'dim', 'path'),
          'student': ('width', 'depth'), 'data': config_lib.FIELDS['data'], 'train': FIT_FIELDS}


def distil(config, workdir):
  """Trains, scores and writes the student that `config` describes."""
  workdir = open_workdir(workdir)
  c = config.data
  frozen = {'teacher': weights.load_teacher(config, config.teacher.path)}
  model = Student(config.teacher.dim, config.student.width, config.student.depth)
  source = pipeline.make_source(c, c.train_split, config.seed)
  held_out = read_clips(pipeline.make_source(c, c.eval_split, config.seed))
  if not held_out:  # before the training
    raise UserError(f'no clip of split {c.eval_split} could be read')

  def loss_fn(params, batch, rng):
    del rng  # nothing is random but the crops
    target = teacher_features(config, frozen, batch['audio'])
    guess = model.apply({'params': params}, batch['audio'])
    return jnp.mean((guess - target) ** 2) / jnp.mean(jnp.var(target, axis=(0, 1)))

  params = train_network(config, workdir, model, loss_fn, crops(config, source, crop_samples(config)))
  save_network(workdir / 'student.safetensors', params)
  frozen['student'] = weights.load_student(config, workdir / 'student.safetensors')
  results = {'parameters': sum(x.size for x in jax.tree.leaves(params)),
             'teacher_parameters': sum(x.size for x in jax.tree.leaves(frozen['teacher'])),
             'split': c.eval_split} | evaluate_student(config, frozen, held_out)
  write_json(workdir / 'results.json', results)
  print(f'on {c.eval_split}: {results["explained"]:.3f} of the variance of the features, cosine '
        f'{results["cosine"]:.3f}')
  print(f'student: {workdir}/student.safetensors')


def read_clips(source, count=200):
  """First seconds of up to `count` clips of a source: (audio `[1, samples]`, mask `[1, frames]`)."""
  items = (source[i] for i in evenly(range(len(source)), count))
  return [first_seconds(item['audio']) for item in items if item is not None]


def evaluate_student(config, frozen, clips):
  """How near a student comes to its teacher on clips of `read_clips`.

  Returns:
    `explained`: share of the features' variance over frames; `cosine`: mean over frames.
  """
  both = jax.jit(lambda audio, mask: (teacher_features(config, frozen, audio, mask)[0],
                                      encoder_features(config, frozen, audio, mask)[0]))
  targets, guesses = [], []
  for audio, mask in clips:
    target, guess = both(audio, mask)
    targets.append(np.asarray(target)[mask[0]])
    guesses.append(np.asarray(guess)[mask[0]])
  target, guess = np.concatenate(targets), np.concatenate(guesses)  # [frames, dim]
  norms = np.linalg.norm(target, axis=1) * np.linalg.norm(guess, axis=1)
  return {'explained': float(1 - ((guess - target) ** 2).mean() / target.var(axis=0).mean()),
          'cosine': float(((guess * target).sum(axis=1) / norms).mean())}
