"""Means with bootstrap intervals over speakers, and the emotion degradation rate.

Clips of one speaker are alike, so speakers are drawn, not clips. Every statistic here is a ratio of sums
over clips, or a mean of such ratios, so a draw of speakers is a row of counts, and all draws are one
matrix product.

The plain percentiles of a bootstrap are too close together for few speakers: of eleven, 95 % would cover
91 %. They are expanded as a t interval is against a normal one (T. C. Hesterberg, What teachers should know
about the bootstrap, The American Statistician 69, 2015, section 3).
"""

import functools
import math

import numpy as np

DRAWS = 10_000  # of few speakers, whose bounds lie far out; of many fewer, see `Speakers`
# Speakers below which there is no interval: of five, its bounds would be the draws' 0.1 and 99.9 %, and too
# few draws differ for that: 93 % of such intervals cover the truth, of six 95 %.
FEWEST = 6


def speaker_of(row):
  """Who speaks: names are a corpus's own, and rows without one count as speakers of their own."""
  return (row.get('corpus', ''), row['speaker']) if row['speaker'] else row['file']


def speaker_groups(rows):
  """Row numbers of each speaker."""
  groups = {}
  for i, row in enumerate(rows):
    groups.setdefault(speaker_of(row), []).append(i)
  return [np.array(g) for g in groups.values()]


def bootstrap(groups, statistic, draws=DRAWS):
  """`statistic` of all row numbers and its 95 % interval over `draws` resamples of whole groups.

  For statistics that are no ratio of sums. Returns {'mean', 'low', 'high'}, or None where it is undefined;
  bounds are None for fewer than `FEWEST` groups.
  """
  rng = np.random.default_rng(0)
  values = [statistic(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))]))
            for _ in range(draws)]
  return _interval(statistic(np.concatenate(groups)), np.array(values), len(groups))


@functools.cache
def tail(groups):
  """Share of the draws of `groups` groups that lie below a 95 % interval, and above it.

  A bootstrap's deviation is sqrt((n - 1) / n) of the unbiased one, and normal percentiles are narrower than
  those of a t of n - 1 degrees: both are made up for.
  """
  from scipy import stats
  t = stats.t.ppf(0.975, groups - 1) * math.sqrt(groups / (groups - 1))
  return float(stats.norm.cdf(-t))


def _interval(value, values, groups):
  """{'mean', 'low', 'high'}; None where `value` is undefined, bounds None where groups are too few."""
  if not np.isfinite(value):
    return None
  low = high = None
  values = values[np.isfinite(values)]
  if groups >= FEWEST and values.size:
    low, high = np.quantile(values, [tail(groups), 1 - tail(groups)])
  return {k: v if v is None else float(f'{v:.6g}')
          for k, v in (('mean', value), ('low', low), ('high', high))}


def text(score, form):
  """A score as '0.812 [0.790, 0.830]', or '0.812' without bounds; numbers in the format `form`."""
  mean, low, high = (None if score[k] is None else format(score[k], form) for k in ('mean', 'low', 'high'))
  return mean if low is None else f'{mean} [{low}, {high}]'


def spread(scores):
  """For error bars: how far intervals reach below and above the means of `scores`, `[2, n]`, 0 without."""
  return np.array([[0 if s['low'] is None else max(s['mean'] - s['low'], 0) for s in scores],
                   [0 if s['high'] is None else max(s['high'] - s['mean'], 0) for s in scores]])


class Speakers:
  """Draws of the speakers of a list of rows, the same ones for every statistic.

  Args:
    rows: dicts with `speaker` and `file`.
    draws: resamples; by default as many as make a million counts, at most `DRAWS` and at least 1000.

  Attributes:
    count: speakers.
  """

  def __init__(self, rows, draws=None):
    groups = speaker_groups(rows)
    draws = draws or max(1000, min(DRAWS, 1_000_000 // len(groups)))
    self.count = len(groups)
    self._of_row = np.zeros(len(rows), np.int64)
    for g, members in enumerate(groups):
      self._of_row[members] = g
    resamples = np.random.default_rng(0).multinomial(self.count, np.full(self.count, 1 / self.count), draws)
    self._times = np.concatenate([np.ones((1, self.count)), resamples])  # [1 + draws, speakers]

  def sums(self, values):
    """Sums of `[rows]` in the sample itself and in each draw, `[1 + draws]`."""
    return self._times @ np.bincount(self._of_row, values, minlength=self.count)

  def ratio(self, numerators, denominators=None):
    """Sum over sum with its interval; without denominators the mean of the values that are not NaN."""
    counted = np.isfinite(numerators) if denominators is None else np.asarray(denominators) > 0
    return self.interval(self.ratios(numerators, denominators), counted)

  def interval(self, values, counted=None):
    """A statistic and its interval.

    Args:
      values: `[1 + draws]`, the sample's own first.
      counted: which rows the statistic is of, bool `[rows]`; None is all. It decides how many speakers.
    """
    speakers = self.count if counted is None else len(np.unique(self._of_row[counted]))
    return _interval(values[0], values[1:], speakers)

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
