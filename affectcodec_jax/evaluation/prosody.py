"""Pitch and loudness of a decoded file against its original's."""

import numpy as np

from affectcodec_jax.common.constants import HOP_LENGTH

SILENCE_DB = 30.0  # frames this far below the original's loudest one are pauses


def pitch(audio):
  """Fundamental frequency of `[samples]` in Hz every 5 ms, 0 where unvoiced (WORLD: DIO, StoneMask)."""
  from affectcodec_jax.data.pitch import dio  # half a second of imports, for scores of pitch alone
  return dio(audio, 60.0)


def compare_pitch(reference, decoded):
  """Two F0 tracks `[frames]` in Hz, 0 where unvoiced.

  Returns:
    `f0_rmse` in cents and `f0_correlation` (of log F0) where both are voiced, None of fewer than 10 such
    frames; `voicing_error`, the fraction of frames of which one is voiced and the other is not.
  """
  n = min(len(reference), len(decoded))
  reference, decoded = reference[:n], decoded[:n]
  both = (reference > 0) & (decoded > 0)
  result = {'f0_rmse': None, 'f0_correlation': None,
            'voicing_error': float(np.mean((reference > 0) != (decoded > 0)))}
  if both.sum() >= 10:
    cents = [1200 * np.log2(f[both]) for f in (reference, decoded)]
    result['f0_rmse'] = float(np.sqrt(np.mean((cents[0] - cents[1]) ** 2)))
    result['f0_correlation'] = correlation(*cents)
  return result


def compare_energy(reference, decoded):
  """RMS levels every 20 ms where the original speaks: `energy_rmse` in dB and `energy_correlation`."""
  levels = [10 * np.log10(np.mean(_frames(x) ** 2, axis=1) + 1e-10) for x in (reference, decoded)]
  speech = levels[0] > levels[0].max() - SILENCE_DB
  a, b = (level[speech] for level in levels)
  return {'energy_rmse': float(np.sqrt(np.mean((a - b) ** 2))), 'energy_correlation': correlation(a, b)}


def correlation(a, b):
  """Pearson's, 0 where one of them does not move: a flat contour follows nothing; None if both are flat."""
  spread = np.std(a), np.std(b)
  if max(spread) < 1e-9:
    return None
  if min(spread) < 1e-9:
    return 0.0
  return float(np.mean((a - a.mean()) * (b - b.mean())) / (spread[0] * spread[1]))


def _frames(audio):
  whole = np.pad(audio, (0, -len(audio) % HOP_LENGTH))
  return whole.reshape(-1, HOP_LENGTH).astype(np.float64)  # [frames, 320]
