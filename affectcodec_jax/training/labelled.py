"""What training on emotion labels has in common: the loss, the held-out speakers, the printed scores."""

import jax
import jax.numpy as jnp
import optax

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import EMOTIONS
from affectcodec_jax.data import pipeline


def cross_entropy(logits, emotion, smoothing):
  """Mean over the clips that have a label, -1 being none: logits `[B, emotions]`, emotion `[B]`."""
  known = emotion >= 0
  labels = jax.nn.one_hot(emotion, logits.shape[-1])
  loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, smoothing))
  return jnp.sum(loss * known) / jnp.maximum(known.sum(), 1)


def check_labels(splits):
  """Refuses speech without labels, from which nothing would be learnt, before the training.

  Args:
    splits: {name: source}; sources that know an emotion only with its audio are not asked.

  Raises:
    UserError: no item of a split has a known emotion.
  """
  for split, source in splits.items():
    known = getattr(source, 'emotion', None)
    if known and all(known(i) < 0 for i in range(len(source))):
      raise UserError(f'no file of split {split} has a known emotion; give a manifest with `emotion`')


def held_out_splits(config):
  """{split: source} of what `config` holds out and, where there are test speakers, of those."""
  c = config.data
  held_out = {c.eval_split: pipeline.make_source(c, c.eval_split, config.seed)}
  if c.source != 'synthetic':
    try:
      held_out['test'] = pipeline.make_source(c, 'test', config.seed)
    except UserError:
      pass  # a set without test speakers
  return held_out


def report(split, results):
  """Prints what `accuracy.score` found, and the accuracy on degraded clips where there is one."""
  degraded = f', {results["degraded"]:.3f} when degraded' if 'degraded' in results else ''
  print(f'unweighted accuracy on {split}: {results["accuracy"]:.3f} over {results["clips"]} clips'
        f'{degraded}; '
        + ', '.join(f'{k} {v:.3f}' for k, v in results['corpora'].items()))
  print('true \\ predicted ' + ' '.join(f'{name[:6]:>6}' for name in EMOTIONS))
  for name, row in zip(EMOTIONS, results['confusion']):
    print(f'{name:>16} ' + ' '.join(f'{n:>6}' for n in row))
