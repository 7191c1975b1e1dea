"""Pictures of sound."""

import numpy as np
from PIL import Image

_WINDOW, _HOP = 512, 128  # samples
_COLOURS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])


def spectrogram(audio, loudest=None):
  """Picture of the log spectrogram of `[samples]`, 80 dB deep, low frequencies at the bottom.

  Args:
    audio: the samples.
    loudest: dB of the brightest colour, 0 for magnitudes of 1 of a Hann window of 512; None is the
      loudest bin's.

  Returns:
    A PIL image of 257 by `samples // 128 + 1` pixels.
  """
  padded = np.pad(audio, _WINDOW // 2)
  frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]  # [frames, window]
  db = 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(_WINDOW))) + 1e-6)
  loudest = db.max() if loudest is None else loudest
  level = np.clip((db - loudest + 80) / 80, 0, 1).T[::-1]  # [bins, frames]
  stops = np.linspace(0, 1, len(_COLOURS))
  rgb = np.stack([np.interp(level, stops, _COLOURS[:, i]) for i in range(3)], axis=-1)
  return Image.fromarray(rgb.astype(np.uint8))
