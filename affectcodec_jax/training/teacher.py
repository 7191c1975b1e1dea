"""Trains the compact emotion teacher on labelled speech.

Writes WORKDIR/teacher.safetensors (point `teacher.path` of a codec's configuration at it),
WORKDIR/metrics.jsonl, and WORKDIR/results.json with the accuracy on the held-out split and, where
there is one, on the test split.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import write_json
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.config import crop_samples
from affectcodec_jax.data import pipeline
from affectcodec_jax.data.augment import MAX_SPEED, augment, degrade
from affectcodec_jax.emotion.compact import Teacher
from affectcodec_jax.emotion.judges import labelled, padded_clip, score
from affectcodec_jax.training.fit import FIT_FIELDS, open_workdir, train_network

# What is needed of a configuration.
FIELDS = {'teacher': ('dim',), 'data': ('source', 'crop_seconds'),
          'train': (*FIT_FIELDS, 'dropout', 'label_smoothing')}


def _loss(params, batch, rng, model, samples, smoothing):
  """Cross-entropy, over the clips that have a label, on augmented speech."""
  augment_rng, dropout_rng = jax.random.split(rng)
  audio = augment(batch['audio'], augment_rng, samples)
  logits = model.apply({'params': params}, audio, deterministic=False, rngs={'dropout': dropout_rng})
  known = batch['emotion'] >= 0
  labels = jnp.eye(logits.shape[-1])[jnp.maximum(batch['emotion'], 0)]
  loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, smoothing))
  return jnp.sum(loss * known) / jnp.maximum(known.sum(), 1)


def train_teacher(config, workdir):
  """Trains, evaluates and writes the teacher that `config` describes."""
  workdir = open_workdir(workdir)
  c, samples = config.data, crop_samples(config)
  source = pipeline.make_source(c, c.train_split, config.seed)
  held_out = {c.eval_split: pipeline.make_source(c, c.eval_split, config.seed)}
  if c.source != 'synthetic':
    try:
      held_out['test'] = pipeline.make_source(c, 'test', config.seed)
    except UserError:
      pass  # a set without test speakers
  model = Teacher(config.teacher.dim, dropout=config.train.dropout)
  loss_fn = functools.partial(_loss, model=model, samples=samples, smoothing=config.train.label_smoothing)
  params = train_network(config, workdir, 'teacher', model, loss_fn, source,
                         crop_samples=-(-int(samples * MAX_SPEED) // HOP_LENGTH) * HOP_LENGTH)
  results = {'parameters': sum(x.size for x in jax.tree.leaves(params))}
  for split, items in held_out.items():
    results[split] = evaluate_teacher(params, items, config.teacher.dim)
    _report(split, results[split])
  write_json(workdir / 'results.json', results)
  print(f'teacher: {workdir}/teacher.safetensors')


def evaluate_teacher(params, source, dim):
  """Scores of a teacher over the labelled clips of a source (see `judges.score`).

  `degraded` is its accuracy on the same clips after `augment.degrade`: noise, filters, codec-like
  distortion.
  """
  apply = jax.jit(lambda audio, mask: Teacher(dim).apply({'params': params}, audio, mask).argmax())
  rough = jax.jit(degrade)
  items = labelled(source)
  clean, degraded = [], []
  for i, item in enumerate(items):
    audio, mask = padded_clip(item['audio'])
    clean.append(int(apply(audio, mask)))
    degraded.append(int(apply(rough(audio, *jax.random.split(jax.random.PRNGKey(i))), mask)))
  return score(items, np.array(clean)) | {'degraded': score(items, np.array(degraded))['accuracy']}


def _report(split, results):
  print(f'unweighted accuracy on {split}: {results["accuracy"]:.3f} over {results["clips"]} clips, '
        f'{results["degraded"]:.3f} when degraded; '
        + ', '.join(f'{k} {v:.3f}' for k, v in results['corpora'].items()))
  print('true \\ predicted ' + ' '.join(f'{name[:6]:>6}' for name in EMOTIONS))
  for name, row in zip(EMOTIONS, results['confusion']):
    print(f'{name:>16} ' + ' '.join(f'{n:>6}' for n in row))
