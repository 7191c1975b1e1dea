"""How a decoded file compares with its original, and what many such comparisons say together.

Higher STOI is better, lower mel distance. Emotion is judged by classifiers that are not the teacher
(`judges`): `agreement`, how often the decoded clip is heard as the original was; `variation`, the total
variation distance of the two posteriors, 0 to 1; and over all labelled clips the emotion degradation
rate, the loss of recall in per cent of that on the originals (AffectCodec, section on evaluation).
"""

import numpy as np

from affectcodec_jax.audio import level_gain
from affectcodec_jax.spectral import log_mel


def find_stoi():
  """STOI of (reference, decoded) at 16 kHz, None for clips too short; None where pystoi is absent."""
  try:
    from pystoi import stoi
  except ImportError:
    return None

  def score(reference, decoded):
    if len(reference) < 0.5 * 16000:  # STOI needs 30 frames of speech; pystoi says 1e-5 to less
      return None
    return float(stoi(reference, decoded, 16000))

  return score


def mel_distance(reference, decoded):
  """Mean absolute distance in log10 of 80-band mel spectra, both at the reference's level."""
  gain = 10 ** (level_gain(reference) / 20)
  pad = (0, max(0, 2048 - len(reference)))
  a, b = (np.asarray(log_mel(np.pad(x * gain, pad), 1024, 256, 80)) for x in (reference, decoded))
  return float(np.abs(a - b).mean())


def emotion_scores(original, decoded):
  """Agreement (0 or 1) and variation of two posteriors `[emotions]`, and the two predictions."""
  return {'agreement': int(original.argmax() == decoded.argmax()),
          'variation': float(0.5 * np.abs(original - decoded).sum()),
          'original': int(original.argmax()), 'decoded': int(decoded.argmax())}


def summarise(rows, judges, draws=1000):
  """Means of each rate with 95 % bootstrap intervals over speakers.

  Args:
    rows: one dict a file and rate: `file`, `speaker`, `emotion`, `kbps`, `mel`, `stoi` (or None) and
      for each judge `JUDGE_agreement`, `JUDGE_variation`, `JUDGE_original`, `JUDGE_decoded`.
    judges: their names.
    draws: of the bootstrap.

  Returns:
    {rate: {metric: {'mean', 'low', 'high'} or None}}; `METRIC_change` is the mean change from the
    rate below on the same files, `JUDGE_macro` and `JUDGE_weighted` the degradation rates.
  """
  rates = sorted({r['kbps'] for r in rows})
  scores = {kbps: {r['file']: r for r in rows if r['kbps'] == kbps} for kbps in rates}
  out = {}
  for lower, kbps in zip([None, *rates], rates):
    of_rate, here = out.setdefault(f'{kbps:g}', {}), list(scores[kbps].values())
    for name in ('mel', 'stoi', *(f'{j}_{k}' for j in judges for k in ('agreement', 'variation'))):
      scored = [r for r in here if r[name] is not None]
      of_rate[name] = _mean(scored, [r[name] for r in scored], draws)
      if lower is not None and name in ('mel', 'stoi'):
        change = [r[name] - scores[lower][r['file']][name] for r in scored]
        of_rate[f'{name}_change'] = _mean(scored, change, draws)
    known = [r for r in here if r['emotion'] >= 0]
    for judge in judges:
      of_rate |= {f'{judge}_{k}': v for k, v in _degradation(known, judge, draws).items()}
  return out


def speaker_groups(rows):
  """Row numbers of each speaker; rows without one count as speakers of their own."""
  groups = {}
  for i, row in enumerate(rows):
    groups.setdefault(row['speaker'] or row['file'], []).append(i)
  return [np.array(g) for g in groups.values()]


def bootstrap(groups, statistic, draws=1000):
  """`statistic` of all row numbers and its 95 % interval over `draws` resamples of whole groups.

  None where it is undefined, such as a loss of recall where there was none to lose.
  """
  rng = np.random.default_rng(0)
  values = [statistic(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))]))
            for _ in range(draws)]
  mean = statistic(np.concatenate(groups))
  if np.isnan(mean):
    return None
  low, high = np.nanpercentile(values, [2.5, 97.5])
  return {'mean': float(mean), 'low': float(low), 'high': float(high)}


def _mean(rows, values, draws):
  if not rows:
    return None
  values = np.asarray(values, np.float64)
  return bootstrap(speaker_groups(rows), lambda i: values[i].mean(), draws)


def _degradation(rows, judge, draws):
  """Emotion degradation rate in per cent, macro (mean of recalls) and weighted (of all clips)."""
  if not rows:
    return {'macro': None, 'weighted': None}
  truth = np.array([r['emotion'] for r in rows])
  right = {k: np.array([r[f'{judge}_{k}'] for r in rows]) == truth for k in ('original', 'decoded')}

  def macro(i):
    recall = {k: np.mean([v[i][truth[i] == e].mean() for e in np.unique(truth[i])])
              for k, v in right.items()}
    return 100 * (1 - recall['decoded'] / recall['original']) if recall['original'] else np.nan

  def weighted(i):
    recall = {k: v[i].mean() for k, v in right.items()}
    return 100 * (1 - recall['decoded'] / recall['original']) if recall['original'] else np.nan

  groups = speaker_groups(rows)
  return {'macro': bootstrap(groups, macro, draws), 'weighted': bootstrap(groups, weighted, draws)}
