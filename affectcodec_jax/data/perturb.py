"""Variations of training speech, so that hours of it are not learnt by heart: speed and equalisation."""

import numpy as np
import soxr

from affectcodec_jax.common.constants import SAMPLE_RATE

_KNOTS = np.array([60, 250, 700, 1800, 4000, 8000])  # Hz
EQUALISER_BANDS = len(_KNOTS)


def change_speed(audio, speed, samples):
  """`[samples * speed or more]` played `speed` times as fast, pitch and tempo together: `[samples]`."""
  if speed == 1.0:
    return audio[:samples]
  faster = soxr.resample(audio, SAMPLE_RATE * speed, SAMPLE_RATE, 'MQ')
  return np.pad(faster, (0, max(0, samples - len(faster))))[:samples]


def equalise(audio, gains_db):
  """Filters `[samples]` by gains in dB at six frequencies from 60 Hz to 8 kHz, straight lines between."""
  frequency = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
  gain = np.interp(np.log(np.maximum(frequency, 1.0)), np.log(_KNOTS), gains_db)
  return np.fft.irfft(np.fft.rfft(audio) * 10 ** (gain / 20), len(audio)).astype(np.float32)
