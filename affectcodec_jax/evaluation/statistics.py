"""Means with bootstrap intervals over speakers, and the emotion degradation rate.

Clips of one speaker are alike, so speakers are drawn, not clips. Every statistic here is a ratio of sums
over clips, or a mean of such ratios, so a draw of speakers is a row of counts, and 1000 draws are one
matrix product.
"""

import numpy as np

DRAWS = 1000


def speaker_groups(rows):
  """Row numbers of each speaker; rows without one count as speakers of their own."""
  groups = {}
  for i, row in enumerate(rows):
    groups.setdefault(row['speaker'] or row['file'], []).append(i)
  return [np.array(g) for g in groups.values()]


def bootstrap(groups, statistic, draws=DRAWS):
  """`statistic` of all row numbers and its 95 % interval over `draws` resamples of whole groups.

  For statistics that are no ratio of sums. None where it is undefined.
  """
  rng = np.random.default_rng(0)
  values = [statistic(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))]))
            for _ in range(draws)]
  return _interval(statistic(np.concatenate(groups)), np.array(values))


def _interval(value, values):
  """{'mean', 'low', 'high'}; None where `value` is undefined."""
  if not np.isfinite(value):
    return None
  values = values[np.isfinite(values)]
  low, high = np.percentile(values, [2.5, 97.5]) if values.size else (value, value)
  return {k: float(f'{v:.6g}') for k, v in (('mean', value), ('low', low), ('high', high))}


class Speakers:
  """Draws of the speakers of a list of rows, the same ones for every statistic.

  Args:
    rows: dicts with `speaker` and `file`.
    draws: resamples.
  """

  def __init__(self, rows, draws=DRAWS):
    groups = speaker_groups(rows)
    self.count = len(groups)
    self._of_row = np.zeros(len(rows), np.int64)
    for g, members in enumerate(groups):
      self._of_row[members] = g
    rng = np.random.default_rng(0)
    drawn = rng.integers(self.count, size=(draws, self.count))
    resamples = np.stack([np.bincount(d, minlength=self.count) for d in drawn])
    self._times = np.concatenate([np.ones((1, self.count)), resamples])  # [1 + draws, speakers]

  def sums(self, values):
    """Sums of `[rows]` in the sample itself and in each draw, `[1 + draws]`."""
    return self._times @ np.bincount(self._of_row, values, minlength=self.count)

  def ratio(self, numerators, denominators=None):
    """Sum over sum with its interval; without denominators the mean of the values that are not NaN."""
    return self.interval(self.ratios(numerators, denominators))

  def interval(self, values):
    """A statistic and its interval from its values `[1 + draws]`, the sample's own first."""
    return _interval(values[0], values[1:])

  def ratios(self, numerators, denominators=None):
    """`ratio` in the sample itself and in each draw, `[1 + draws]`."""
    numerators = np.asarray(numerators, np.float64)
    if denominators is None:
      denominators = np.isfinite(numerators).astype(np.float64)
      numerators = np.nan_to_num(numerators)
    below = self.sums(denominators)
    return np.divide(self.sums(numerators), below, out=np.full_like(below, np.nan), where=below > 0)

  def recall(self, truth, predicted, macro):
    """Recall in each draw, `[1 + draws]`: mean over the classes that occur in it, or over clips."""
    right = truth == predicted
    if not macro:
      return self.ratios(right)
    of_class = [self.ratios(right & (truth == e), (truth == e).astype(np.float64))
                for e in np.unique(truth)]
    return np.nanmean(np.stack(of_class), axis=0)

  def degradation(self, truth, original, decoded, macro):
    """Emotion degradation rate (section on evaluation): recall lost, in per cent of the original's.

    Args:
      truth, original, decoded: emotions `[rows]`: true, and as classified in the original and decoded clip.
      macro: mean over emotions (MEDR), else over clips (WEDR).

    Returns:
      In the sample itself and in each draw, `[1 + draws]`.
    """
    before, after = (self.recall(truth, p, macro) for p in (original, decoded))
    lost = np.divide(before - after, before, out=np.full_like(before, np.nan), where=before > 0)
    return 100 * lost
