"""Linear probes: how much of something can be read off codes by a linear map.

Regressions are solved from second moments, which add up: one pass over a speaker's frames serves every
fit, every score and every resampling that the speaker takes part in.
"""

from typing import NamedTuple

import numpy as np

from affectcodec_jax.common.errors import require_extra
from affectcodec_jax.evaluation.statistics import Speakers, bootstrap

RIDGE = 1e-6  # times the frames: keeps a digit that never changes from being singular, and no more
LOGISTIC_C = 0.1


class Moments(NamedTuple):
  """Sums over frames for inputs x (a 1 in front) `[F + 1]` and targets y `[B]`.

  Attributes:
    xx: `[F + 1, F + 1]`; its first entry is the number of frames.
    xy: `[F + 1, B]`; its first row is the sum of y.
    yy: `[B]`, sum of squares.
  """

  xx: np.ndarray
  xy: np.ndarray
  yy: np.ndarray

  def first(self, columns):
    """The moments of the first `columns` inputs."""
    return Moments(self.xx[:columns + 1, :columns + 1], self.xy[:columns + 1], self.yy)


def moments(x, y):
  """`Moments` of inputs `[frames, F]` and targets `[frames, B]`."""
  x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
  y = np.asarray(y, np.float64)
  return Moments(x.T @ x, x.T @ y, (y ** 2).sum(axis=0))


def add(many):
  """Moments of all the frames of several."""
  return Moments(*(sum(parts) for parts in zip(*many)))


def ridge(m, strength=RIDGE):
  """Least-squares weights `[F + 1, B]`, the intercept first and not shrunk."""
  penalty = strength * m.xx[0, 0] * np.eye(len(m.xx))
  penalty[0, 0] = 0
  return np.linalg.solve(m.xx + penalty, m.xy)


def squared_error(weights, m):
  """Summed squared error of each target, `[B]`."""
  return m.yy - 2 * (weights * m.xy).sum(axis=0) + (weights * (m.xx @ weights)).sum(axis=0)


class TwoFold(NamedTuple):
  """Groups of frames (speakers), each predicted by what was fitted to the other half of them.

  Attributes:
    half: `[groups]`, 0 or 1.
    error: summed squared error, `[groups, B]`.
    yy: sum of squares of the targets, `[groups, B]`.
    y: their sum, `[groups, B]`.
    count: frames, `[groups]`.
  """

  half: np.ndarray
  error: np.ndarray
  yy: np.ndarray
  y: np.ndarray
  count: np.ndarray

  def r_squared(self, groups=None, bands=False):
    """Mean over the two halves of R^2 on the frames of `groups` (numbers, repeats count; None is all).

    R^2 = 1 - squared error / squared distance to the mean of those frames, both summed over targets:
    the mean of the targets' R^2 weighted by their variance. With `bands` that of each target, `[B]`.
    """
    groups = np.arange(len(self.half)) if groups is None else groups
    values = []
    for half in (0, 1):
      i = groups[self.half[groups] == half]
      if not len(i):
        return np.nan  # a resampling without a speaker of one half
      error = self.error[i].sum(axis=0)
      total = self.yy[i].sum(axis=0) - self.y[i].sum(axis=0) ** 2 / self.count[i].sum()
      values.append(1 - error / total if bands else 1 - error.sum() / total.sum())
    return np.mean(values, axis=0)

  def interval(self):
    """R^2 with its 95 % interval over groups; the two fits stay as they are."""
    return bootstrap([np.array([g]) for g in range(len(self.half))], self.r_squared)


def two_fold(groups, half):
  """`TwoFold` of one `Moments` a group, with `half` `[groups]` of 0 and 1."""
  half = np.asarray(half)
  weights = [ridge(add([m for m, h in zip(groups, half) if h != fold])) for fold in (0, 1)]
  return TwoFold(half, np.array([squared_error(weights[h], m) for m, h in zip(groups, half)]),
                 np.array([m.yy for m in groups]), np.array([m.xy[0] for m in groups]),
                 np.array([m.xx[0, 0] for m in groups]))


def require_sklearn():
  """scikit-learn's (LogisticRegression, make_pipeline, StandardScaler).

  Raises:
    UserError: it is not installed.
  """
  require_extra('sklearn', 'scikit-learn')
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler
  return LogisticRegression, make_pipeline, StandardScaler


def logistic(train, train_labels, test):
  """Labels `[n]` that a linear classifier fitted to `train` `[m, F]` gives `test` `[n, F]`.

  Multinomial logistic regression on standardised inputs, classes weighted to count alike.
  """
  classifier, make_pipeline, scaler = require_sklearn()
  model = make_pipeline(scaler(), classifier(C=LOGISTIC_C, class_weight='balanced', max_iter=1000))
  return model.fit(train, train_labels).predict(test)


def recall_interval(truth, predicted, groups):
  """Mean recall over the classes in `truth` `[n]`, with its 95 % interval over `groups` `[n]`."""
  speakers = Speakers([{'speaker': f'speaker {g}'} for g in groups])
  return speakers.interval(speakers.recall(truth, predicted, macro=True))


def recall_over_classes(truth, predicted):
  """Mean over the classes in `truth` `[n]` of their recall, with its 95 % interval over the classes."""
  classes = np.unique(truth)
  recall = [np.mean(predicted[truth == c] == c) for c in classes]
  return Speakers([{'speaker': f'class {c}'} for c in classes]).ratio(recall)
