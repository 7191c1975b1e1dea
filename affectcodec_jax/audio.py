"""Reading, writing and levelling audio files.

Everything inside the codec is mono float32 in [-1, 1] at `SAMPLE_RATE`.
"""

import io
import logging
import pathlib

import numpy as np
import soundfile
import soxr

from affectcodec_jax.common.arrays import to_mono
from affectcodec_jax.common.audio_reader import check_rate, read_blocks
from affectcodec_jax.common.constants import HOP_LENGTH, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import check_length, whole, write_output
from affectcodec_jax.common.open_sound import open_sound

# Active level the codec works at. Speech has a crest factor of 15–20 dB, so its peaks stay below 1.
TARGET_DB = -24.0
_GATE_DB = 30.0  # frames this far below the loudest one count as pauses
_OVERLOAD = 2.0  # beyond twice full scale sound is lowered; less than that is clipped
_BLOCK = 1 << 16  # samples that are written at once
_FORMATS = {'.wav': ('WAV',), '.flac': ('FLAC',), '.ogg': ('OGG',), '.opus': ('OGG', 'OPUS'),
            '.mp3': ('MP3',)}


def read_audio(path, start=0.0, seconds=None, pipes=True):
  """Reads a file of any common format as mono float32 `[samples]` at 16 kHz; '-' is standard input.

  Args:
    path: the file.
    start: seconds to skip.
    seconds: seconds to read, or None for the rest of the file.
    pipes: whether it may be a pipe: a data set has none.

  Raises:
    UserError: no such file, not audio, empty, or with samples that are not finite.
  """
  with open_sound(path, pipes) as file:
    return read_sound(file, 'standard input' if path == '-' else path, start, seconds)


def read_sound(file, name, start=0.0, seconds=None):
  """`read_audio` of an opened file, or of a `Part` of bytes; `name` begins the errors."""
  out, stream, read, rate = [], None, 0.0, SAMPLE_RATE
  # In blocks, resampled one by one: neither does the length that a header promises have to be true, nor
  # do hours at a high rate have to fit into memory.
  for block, block_rate in read_blocks(file, name, start, seconds):
    if stream and block_rate != rate:
      out.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    if stream is None or block_rate != rate:
      rate, stream = block_rate, _resampler(block_rate)
    if seconds is not None:
      block = block[:max(round((seconds - read) * rate), 0)]
    read += len(block) / rate
    out.append(stream.resample_chunk(block) if stream else block)
    if seconds is not None and read >= seconds - 0.5 / rate:
      break
  if stream:
    out.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
  audio = np.concatenate(out) if out else np.zeros(0, np.float32)
  if read and not audio.size:
    raise UserError(f'{name}: {read:.4f} s at {rate} Hz are too short to resample')
  return to_mono(audio, name)


def _resampler(rate):
  return soxr.ResampleStream(rate, SAMPLE_RATE, 1) if rate != SAMPLE_RATE else None


def resample(audio, from_rate, to_rate, name='audio'):
  """Resamples `[samples]` from `from_rate` to `to_rate`, both in Hz (soxr HQ)."""
  from_rate, to_rate = check_rate(from_rate, name), check_rate(to_rate, name)
  if from_rate == to_rate:
    return audio
  resampled = soxr.resample(audio, from_rate, to_rate).astype(np.float32)
  if resampled.size == 0:
    raise UserError(f'{name}: {len(audio)} samples at {from_rate} Hz are too short to resample')
  return resampled


def write_audio(path, audio):
  """Writes mono float `[samples]` at 16 kHz, as 16-bit PCM where the format has it; '-' is standard output.

  The file appears whole or not at all. Sound far above full scale is lowered, with a warning, not clipped.

  Raises:
    UserError: the format is unknown, the file cannot be written, or there are no samples, or some that are
      not finite.
  """
  audio = to_mono(audio, path)  # encoders of NaN abort the whole process
  peak = np.abs(audio).max(initial=0.0)
  if peak > _OVERLOAD:
    down = 20 * np.log10(peak) + 0.1
    logging.warning('%s: the sound is %.1f dB above full scale, as the recording was; lowered by %.1f dB',
                    path, down - 0.1, down)
    audio = audio * np.float32(10 ** (-down / 20))
  if path == '-':
    memory = io.BytesIO()
    _encode(memory, audio, 'WAV')
    write_output(memory.getvalue())
    return
  path = check_writable_kind(path)
  with whole(path) as temporary, open(temporary, 'wb', buffering=0) as file:
    sink = Sink(file)
    try:
      _encode(sink, audio, *_FORMATS[path.suffix.lower()])
    except soundfile.SoundFileError as e:
      sink.check()
      raise UserError(f'{path}: cannot be written ({e})') from e
    sink.check()
    check_length(temporary, sink.length)


def _encode(file, audio, kind, subtype=None):
  with soundfile.SoundFile(file, 'w', SAMPLE_RATE, 1, subtype, format=kind) as sound:
    for start in range(0, len(audio), _BLOCK):  # Vorbis takes stack for all of them
      sound.write(np.clip(audio[start:start + _BLOCK], -1.0, 1.0))
      if getattr(file, 'error', None):
        return


class Sink:
  """A file for libsndfile to write to, which itself does not report a full disk."""

  def __init__(self, file):
    self._file, self.error, self.length = file, None, 0

  def write(self, data):
    """As a file's, but an error is kept for `check`."""
    data = memoryview(data)
    try:
      at = 0
      while at < len(data):
        at += self._file.write(data[at:])
    except OSError as e:
      self.error = self.error or e
    self.length = max(self.length, self._file.tell())
    return len(data)

  def read(self, size=-1):
    """As a file's."""
    return self._file.read(size)

  def seek(self, offset, whence=0):
    """As a file's."""
    return self._file.seek(offset, whence)

  def tell(self):
    """As a file's."""
    return self._file.tell()

  def check(self):
    """Raises the first error of writing."""
    if self.error:
      raise self.error


def check_writable_kind(path):
  """`path` as a `Path`; '-' is standard output.

  Raises:
    UserError: its suffix is not one that `write_audio` writes.
  """
  kind = pathlib.Path(path)
  if path != '-' and kind.suffix.lower() not in _FORMATS:
    raise UserError(f'{path}: cannot write this kind of audio file; use .wav, .flac, .ogg, .opus or .mp3')
  return kind


def active_level(audio):
  """RMS in dBFS of the parts of `[samples]` that are speech, not pause; -inf for digital silence."""
  whole = len(audio) // HOP_LENGTH * HOP_LENGTH
  frames = audio[:whole].reshape(-1, HOP_LENGTH)  # [frames, 320]
  energy = np.einsum('ts,ts->t', frames, frames, dtype=np.float64) / HOP_LENGTH
  if whole < len(audio):
    last = np.sum(np.square(audio[whole:], dtype=np.float64)) / HOP_LENGTH
    energy = np.append(energy, last)
  gate = energy.max() * 10 ** (-_GATE_DB / 10)
  active = energy[energy >= max(gate, 1e-12)]
  return 10 * np.log10(active.mean()) if active.size else -np.inf


def at_codec_level(audio):
  """`[samples]` brought to the level that the codec works at (see `level_gain`), float32."""
  return apply_gain(audio, level_gain(audio))


def apply_gain(audio, gain_db):
  """`[samples]` louder by so many decibels, float32."""
  return np.asarray(audio, np.float32) * np.float32(10 ** (gain_db / 20))


def pad_to_frames(audio, frames):
  """`[samples]` with zeros up to so many frames of the codec.

  Returns:
    float32 `[frames * 320]`, and bool `[frames]`: which of them have samples.
  """
  padded = np.zeros(frames * HOP_LENGTH, np.float32)
  padded[:len(audio)] = audio
  return padded, np.arange(frames) * HOP_LENGTH < len(audio)


def level_gain(audio):
  """Gain in dB that brings `[samples]` to `TARGET_DB` without clipping; 0 for digital silence."""
  level = active_level(audio)
  if not np.isfinite(level):
    return 0.0
  peak_db = 20 * np.log10(np.abs(audio).max())
  return float(min(TARGET_DB - level, -0.1 - peak_db))
