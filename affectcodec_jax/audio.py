"""Reading, writing and levelling audio files.

Everything inside the codec is mono float32 in [-1, 1] at `SAMPLE_RATE`.
"""

import math
import os
import pathlib

import numpy as np
import soundfile
import soxr

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import whole

SAMPLE_RATE = 16000
# Active level the codec works at. Speech has a crest factor of 15–20 dB, so its peaks stay below 1.
TARGET_DB = -24.0
_GATE_DB = 30.0  # frames this far below the loudest one count as pauses
_GATE_FRAME = 320  # samples


def read_audio(path, start=0.0, seconds=None):
  """Reads a WAV, FLAC, OGG or MP3 file as mono float32 `[samples]` at 16 kHz.

  Args:
    path: the file.
    start: seconds to skip.
    seconds: seconds to read, or None for the rest of the file.

  Raises:
    UserError: no such file, not audio, empty, or with samples that are not finite.
  """
  if not os.path.exists(path):
    raise UserError(f'{path}: no such file')
  try:
    with soundfile.SoundFile(path) as f:
      f.seek(int(start * f.samplerate))
      limit = math.inf if seconds is None else int(seconds * f.samplerate)
      # In blocks, made mono and resampled one by one: neither does the number of samples that a header
      # promises have to be true, nor do hours at a high rate have to fit into memory.
      stream = soxr.ResampleStream(f.samplerate, SAMPLE_RATE, 1) if f.samplerate != SAMPLE_RATE else None
      blocks, count = [], 0
      while count < limit and (block := f.read(min(1 << 20, limit - count), dtype='float32',
                                               always_2d=True)).size:
        count += len(block)
        mono = block.mean(axis=1)  # [samples, channels] -> [samples]
        blocks.append(stream.resample_chunk(mono) if stream else mono)
      if stream and count:
        blocks.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
      native_rate = f.samplerate
  except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, MemoryError) as e:
    reason = str(e).split(': ')[-1].rstrip('.')
    raise UserError(f'{path}: not a readable audio file ({reason}); give WAV, FLAC, OGG or MP3') from e
  audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
  if count and not audio.size:
    raise UserError(f'{path}: {count} samples at {native_rate} Hz are too short to resample')
  return to_mono(audio, path)


def to_mono(audio, name='audio'):
  """Averages `[samples]` or `[samples, channels]` to finite, non-empty float32 `[samples]`."""
  audio = np.asarray(audio)
  if np.issubdtype(audio.dtype, np.integer):
    audio = audio / float(np.iinfo(audio.dtype).max + 1)
  audio = audio.astype(np.float32, copy=False)
  if audio.ndim == 2:
    audio = audio.mean(axis=1)  # [samples, channels] -> [samples]
  if audio.ndim != 1:
    raise UserError(f'{name}: expected [samples] or [samples, channels], got shape {audio.shape}')
  if audio.size == 0:
    raise UserError(f'{name}: holds no samples')
  if not np.isfinite(audio).all():
    raise UserError(f'{name}: holds samples that are NaN or infinite')
  return audio


def resample(audio, from_rate, to_rate, name='audio'):
  """Resamples `[samples]` from `from_rate` to `to_rate`, both in Hz (soxr HQ)."""
  if not (0 < from_rate < math.inf and 0 < to_rate < math.inf):
    raise UserError(f'sample rate must be positive, got {from_rate} and {to_rate}')
  if from_rate == to_rate:
    return audio
  resampled = soxr.resample(audio, from_rate, to_rate).astype(np.float32)
  if resampled.size == 0:
    raise UserError(f'{name}: {len(audio)} samples at {from_rate} Hz are too short to resample')
  return resampled


def write_audio(path, audio):
  """Writes mono float `[samples]` at 16 kHz, as 16-bit PCM where the format has it.

  The file appears whole or not at all.

  Raises:
    UserError: the format is unknown or the folder cannot be written.
  """
  path = check_writable_kind(path)
  try:
    with whole(path) as temporary:
      soundfile.write(temporary, np.clip(audio, -1.0, 1.0), SAMPLE_RATE, format=path.suffix[1:].upper())
  except soundfile.SoundFileError as e:
    raise UserError(f'{path}: cannot be written ({e})') from e


def check_writable_kind(path):
  """`path` as a `Path`.

  Raises:
    UserError: its suffix is not one that `write_audio` writes.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() not in ('.wav', '.flac', '.ogg', '.mp3'):
    raise UserError(f'{path}: cannot write this kind of audio file; use .wav, .flac, .ogg or .mp3')
  return path


def active_level(audio):
  """RMS in dBFS of the parts of `[samples]` that are speech, not pause; -inf for digital silence."""
  whole = len(audio) // _GATE_FRAME * _GATE_FRAME
  frames = audio[:whole].reshape(-1, _GATE_FRAME)  # [frames, 320]
  energy = np.einsum('ts,ts->t', frames, frames, dtype=np.float64) / _GATE_FRAME
  if whole < len(audio):
    last = np.sum(np.square(audio[whole:], dtype=np.float64)) / _GATE_FRAME
    energy = np.append(energy, last)
  gate = energy.max() * 10 ** (-_GATE_DB / 10)
  active = energy[energy >= max(gate, 1e-12)]
  return 10 * np.log10(active.mean()) if active.size else -np.inf


def level_gain(audio):
  """Gain in dB that brings `[samples]` to `TARGET_DB` without clipping; 0 for digital silence."""
  level = active_level(audio)
  if not np.isfinite(level):
    return 0.0
  peak_db = 20 * np.log10(np.abs(audio).max())
  return float(min(TARGET_DB - level, -0.1 - peak_db))
