"""Fundamental frequency of training speech: the target of the source-filter decoder's pitch.

By WORLD's DIO and StoneMask (package pyworld): no weights, no framework, and of its trackers the one that
keeps up with training. Tracks are kept by the content of the recording: a second epoch, and a second
run, reads them. Decoding needs none of it.
"""

import contextlib
import hashlib
import pathlib
import warnings

import numpy as np

from affectcodec_jax.common.constants import HIGHEST_PITCH, HOP_LENGTH, LOWEST_PITCH, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import write_whole
from affectcodec_jax.common.places import cache_folder

with warnings.catch_warnings():
  warnings.simplefilter('ignore')  # of pyworld's own imports
  import pyworld

PERIOD = 0.005  # seconds between two values of a track
_VERSION = 1  # of the tracks in the cache
_LONGEST_KEPT = 25.0  # seconds


def dio(audio, lowest):
  """Fundamental of `[samples]` every `PERIOD`, float64 `[samples / 80 + 1]` in Hz, 0 where unvoiced.

  It is looked for from `lowest` Hz on; what StoneMask then makes of it may lie a little outside.
  """
  x = np.ascontiguousarray(audio, np.float64)
  f0, at = pyworld.dio(x, SAMPLE_RATE, f0_floor=lowest, f0_ceil=HIGHEST_PITCH, frame_period=1000 * PERIOD)
  return pyworld.stonemask(x, f0, at, SAMPLE_RATE)


def track(audio):
  """As `dio`, of voices that the decoder can synthesise: float32 `[samples / 80 + 1]`."""
  f0 = dio(audio, LOWEST_PITCH)
  return np.where((f0 >= LOWEST_PITCH) & (f0 <= HIGHEST_PITCH), f0, 0.0).astype(np.float32)


def crop_pitch(recording, start, speed, samples):
  """Pitch of a crop of `[n]` that begins at `start` seconds and is played `speed` times as fast.

  Returns:
    f0 and voiced, `[samples / 320]` each, see `at_frames`.
  """
  if len(recording) > _LONGEST_KEPT * SAMPLE_RATE:  # a window of a long one, never met again
    first = max(0, int((start - 0.1) * SAMPLE_RATE))
    part = recording[first:int((start + 0.1) * SAMPLE_RATE + samples * speed)]
    return at_frames(track(part), start - first / SAMPLE_RATE, speed, samples // HOP_LENGTH)
  folder = cache_folder(f'pitch-{_VERSION}')
  values = cached_track(recording, folder) if folder else track(recording)
  return at_frames(values, start, speed, samples // HOP_LENGTH)


def cached_track(audio, folder):
  """`track`, read from `folder` where it has been made of the same samples before."""
  digest = hashlib.blake2b(np.ascontiguousarray(audio, np.float32).tobytes(), digest_size=16).hexdigest()
  path = pathlib.Path(folder) / f'{digest}.f16'
  length = len(audio) // round(SAMPLE_RATE * PERIOD) + 1
  if path.exists():
    values = np.fromfile(path, np.float16)
    if len(values) == length:
      return values.astype(np.float32)
  values = track(audio).astype(np.float16)
  with contextlib.suppress(UserError):  # the cache is full or read-only: it is tracked again
    write_whole(path, values.tobytes())
  return values.astype(np.float32)


def at_frames(values, start, speed, frames):
  """A track at the middles of a crop's frames.

  Args:
    values: of the recording, `[n]`.
    start: seconds at which the crop begins in it.
    speed: how much faster the crop plays.
    frames: of the crop.

  Returns:
    f0 `[frames]` in Hz, everywhere above 0: unvoiced frames have that of the nearest voiced one; and
    voiced `[frames]`, 1 or 0. float32 both.
  """
  at = start + (np.arange(frames) + 0.5) * HOP_LENGTH / SAMPLE_RATE * speed
  index = np.round(at / PERIOD).astype(int)
  inside = (index >= 0) & (index < len(values))
  f0 = np.where(inside, values[np.clip(index, 0, len(values) - 1)], 0.0) * speed
  voiced = f0 > 0
  if not voiced.any():
    return np.full(frames, 100.0, np.float32), np.zeros(frames, np.float32)
  known = np.flatnonzero(voiced)
  middle = (known[1:] + known[:-1] + 1) // 2  # a frame in between belongs to the nearer of two
  nearest = known[np.searchsorted(middle, np.arange(frames), side='right')]
  return np.clip(f0[nearest], LOWEST_PITCH, HIGHEST_PITCH).astype(np.float32), voiced.astype(np.float32)
