"""Labelled clips, and how well a classifier of emotions does on them."""

import numpy as np

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.labels import EMOTIONS


def score(items, predicted):
  """How well emotions `predicted` `[n]` fit `items` with `emotion` and `corpus`.

  Returns:
    unweighted accuracy (mean recall over the emotions present), of all and of each corpus, with the
    count of clips and the confusion table `[true][predicted]`.
  """
  truth = np.array([item['emotion'] for item in items])
  corpora = np.array([item.get('corpus', '') for item in items])
  confusion = np.zeros((len(EMOTIONS), len(EMOTIONS)), np.int64)
  np.add.at(confusion, (truth, predicted), 1)
  return {'accuracy': unweighted_accuracy(truth, predicted), 'clips': len(items),
          'corpora': {c: unweighted_accuracy(truth[corpora == c], predicted[corpora == c])
                      for c in sorted(set(corpora))},
          'confusion': confusion.tolist()}


def unweighted_accuracy(truth, predicted):
  """Mean recall over the emotions that occur in `truth`."""
  return float(np.mean([np.mean(predicted[truth == e] == e) for e in np.unique(truth)]))


def labelled(source):
  """The items of a source that can be read and have a known emotion.

  Raises:
    UserError: there are none.
  """
  items = [item for item in (source[i] for i in range(len(source)))
           if item is not None and item['emotion'] >= 0]
  if not items:
    raise UserError('no clip of this split has a known emotion')
  return items
