"""Sound as it is found: any container and codec, joined files, headers that do not say all.

WAV, FLAC, OGG and the like are read by libsndfile, to the sample; all else, and what it gives up, by the
FFmpeg libraries that the package `av` brings. Joined files (`cat a.ogg b.ogg`) are read in turn.
"""

import contextlib
import functools
import itertools
import logging

import numpy as np
import soundfile

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.joined import (
  Part,
  beyond_header,
  damaged_pages,
  ends_as_named,
  find_parts,
  length,
  untagged,
)

MIN_RATE, MAX_RATE = 4000, 768000  # Hz
_BLOCK = 1 << 18  # samples that are decoded at once
# Demuxers that play sound and open nothing besides the file itself, as playlists would.
_DEMUXERS = ('aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,matroska,webm,mov,mp4,'
             'm4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,tta,voc,w64,wav,wv')
_SURE = ('ogg', 'mov', 'matroska')  # whose lengths are no guess
_DAMAGE = (soundfile.SoundFileError, RuntimeError, OSError, ValueError, MemoryError, OverflowError)


def read_blocks(file, name, start=0.0, seconds=None):
  """Yields (mono float32 `[samples]`, rate in Hz) of an opened file from `start` seconds on.

  `seconds` is how much will be taken, if not all: then a file need not be looked through for joined ones.

  Raises:
    UserError: not audio, or of a rate that no recording has.
  """
  size = length(file)
  if seconds is not None and ends_as_named(file) and (
      _header_seconds(file, (0, size), name) or 0) >= start + seconds:
    yield from _decode(file, (0, size), name, start, seconds)
    return
  parts = find_parts(file)
  if not start and (damaged := damaged_pages(file)):
    logging.warning('%s: damaged in %d places, where there is silence or nothing now', name, damaged)
  for rest in [beyond_header(file, part) for part in parts] if not start else ():
    if rest:
      logging.warning('%s: %d bytes %s', name, abs(rest), 'behind the end of a WAV are left out'
                      if rest > 0 else 'that a header promises are missing')
  if len(parts) == 1:
    yield from _decode(file, parts[0], name, start)
  else:
    yield from _without(start, (b for part in parts for b in _decode(file, part, name)))


def duration(file, name):
  """Seconds by the header, which of joined files is the first's; decoded and counted where it does not say.

  Raises:
    UserError: as `read_blocks`.
  """
  known = _header_seconds(file, (0, length(file)), name)
  return sum(len(block) / rate for block, rate in read_blocks(file, name)) if known is None else known


def _header_seconds(file, part, name):
  sound = _open_sndfile(file, part)
  if sound:
    with sound:
      return sound.frames / check_rate(sound.samplerate, name) or None
  with _open_ffmpeg(file, part, name) as container:
    check_rate(container.streams.audio[0].rate, name)
    return container.duration / 1e6 if container.duration and container.duration > 0 else None


def check_rate(rate, name='audio'):
  """`rate`, a sample rate in Hz.

  Raises:
    UserError: not a number, or none that a recording has.
  """
  rate = rate.item() if getattr(rate, 'ndim', None) == 0 else rate  # a scalar of NumPy, JAX or PyTorch
  number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
  if not number or not MIN_RATE <= rate <= MAX_RATE:
    raise UserError(f'{name}: sample rate {rate!r}; give audio of {MIN_RATE} to {MAX_RATE} Hz')
  return rate


def _unreadable(name, error):
  reason = ' '.join(str(getattr(error, 'strerror', None) or error).split()).split(': ')[-1].rstrip('.')
  return UserError(f'{name}: not a readable audio file ({reason}); give WAV, FLAC, OGG, MP3 or M4A')


def _decode(file, part, name, start=0.0, seconds=None):
  """`read_blocks` of one recording."""
  sound = _open_sndfile(file, part)
  if sound is None:
    yield from _by_ffmpeg(file, part, name, start)
    return
  if not sound.frames:  # so a recorder leaves its header that was killed
    sound.close()
    with contextlib.suppress(UserError):
      yield from _by_ffmpeg(file, part, name, start)
    return
  end, wanted, promised = yield from _by_sndfile(sound, name, start, seconds)
  if end < wanted:
    logging.warning('%s: its header says %.2f s, it is damaged or cut after %.2f s', name, promised, end)
    # Perhaps FFmpeg finds more behind it.
    with contextlib.suppress(UserError) if end > start else contextlib.nullcontext():
      yield from _by_ffmpeg(file, part, name, end)


def _without(seconds, blocks):
  """`blocks` but for the first `seconds`."""
  for block, rate in blocks:
    skip = min(round(seconds * rate), len(block))
    seconds -= skip / rate
    if skip < len(block):
      yield block[skip:], rate


# ---- libsndfile ----


def _open_sndfile(file, part):
  """A `SoundFile`, or None where FFmpeg has to read it."""
  part = untagged(file, part)
  whole = part == (0, length(file))
  file.seek(part[0])
  magic = file.read(4)
  if not magic or magic[:3] == b'ID3' or (magic[0] == 0xff and magic[1:2] >= b'\xe0'):
    return None  # of MP3 it loses what is joined, the end of VBR without an index and 17 ms in 24 s
  file.seek(0)
  try:
    # Without a name, so none that is not UTF-8 or that ends in .raw.
    sound = soundfile.SoundFile(file if whole else Part(file, *part), closefd=False)
  except (*_DAMAGE, TypeError):
    return None
  if sound.format == 'MP3' or sound.subtype.startswith('MPEG') or sound.frames >= 1 << 62:
    sound.close()
    return None
  return sound


def whole_numbers(file):
  """The opened `SoundFile` of a file of whole numbers of at most 24 bits; None for all others.

  Joined files are one only if they are FLAC.
  """
  sound = _open_sndfile(file, (0, length(file)))
  if sound and sound.subtype in ('PCM_S8', 'PCM_U8', 'PCM_16', 'PCM_24'):
    if sound.format == 'FLAC' or len(find_parts(file)) == 1:
      return _open_sndfile(file, (0, length(file)))  # anew: the parts were looked for in the same file
  return None


def _by_sndfile(sound, name, start, seconds):
  """Yields blocks; returns (where they end, where they were to end, where the file is to), in seconds."""
  with sound:
    rate = check_rate(sound.samplerate, name)
    promised, skip, count = sound.frames, round(start * rate), 0
    wanted = promised if seconds is None else min(promised, skip + round(seconds * rate))
    if skip and sound.seekable():
      try:
        count = sound.seek(min(skip, promised))
        skip = 0
      except _DAMAGE:
        pass  # what is skipped is read: some encodings cannot be sought in
    try:
      while (block := sound.read(_BLOCK if seconds is None else min(_BLOCK, wanted - count),
                                 dtype='float32', always_2d=True)).size:
        count += len(block)
        mono = block.mean(axis=1)[skip:]  # [samples, channels] -> [samples]
        skip = max(skip - len(block), 0)
        if mono.size:
          yield mono, rate
    except _DAMAGE:
      pass  # FFmpeg reads on
    return count / rate, wanted / rate, promised / rate


# ---- FFmpeg ----


@functools.cache
def _av():
  try:
    import av
  except ImportError:
    return None
  av.logging.set_level(None)
  return av


def _open_ffmpeg(file, part, name):
  if _av() is None:
    raise UserError(f'{name}: neither WAV, FLAC nor OGG, and the package av, which reads all else, '
                    'is not installed; pip install av')
  options = {'format_whitelist': _DEMUXERS, 'protocol_whitelist': ''}
  try:
    part = Part(file, *untagged(file, part))
    container = _av().open(part, options=options, metadata_errors='replace')
  except (*_DAMAGE, _av().FFmpegError) as e:
    raise _unreadable(name, e) from e
  if not container.streams.audio:
    container.close()
    raise UserError(f'{name}: holds no sound; give a file that does')
  if container.streams.audio[0].codec_context is None:
    container.close()
    raise _unreadable(name, 'coded in a way that is not known here')
  return container


def _by_ffmpeg(file, part, name, start):
  with _open_ffmpeg(file, part, name) as container:
    first, frames = None, iter(())
    if start > 1:
      with contextlib.suppress(*_DAMAGE):
        container.seek(int((start - 0.5) * 1e6))  # microseconds; to a packet before that
        frames = _frames(container, name)
        first = next(frames, None)
    if first is not None and (at := _time(first, container)) is not None and at <= start:
      yield from _without(start - at, _joined(first, frames, name))
      return
  with _open_ffmpeg(file, part, name) as container:  # from the beginning: its packets have no times
    frames, seconds = _frames(container, name), 0.0
    first = next(frames, None)
    if first is not None:
      for block, rate in _without(start, _joined(first, frames, name)):
        seconds += len(block) / rate
        yield block, rate
    promised = (container.duration or 0) / 1e6 - start if container.format.name.startswith(_SURE) else 0.0
    if seconds < promised - 0.5:
      logging.warning('%s: its header says %.2f s, only %.2f s can be decoded', name, promised, seconds)


def _time(frame, container):
  """Seconds of a frame from the first sample on, or None."""
  if frame.pts is None:
    return None
  stream = container.streams.audio[0]
  return float(frame.pts * frame.time_base - (stream.start_time or 0) * stream.time_base)


def _frames(container, name):
  """Decoded frames of the first sound; parts that do not decode are left out, with a warning."""
  damaged, good = 0, 0
  packets = container.demux(container.streams.audio[0])
  while True:
    try:
      packet = next(packets)
    except StopIteration:
      break
    except (*_DAMAGE, _av().FFmpegError) as e:
      logging.warning('%s: damaged, what follows after %d packets is missing (%s)', name, good, e)
      break
    try:
      frames = packet.decode()
    except (*_DAMAGE, _av().FFmpegError) as e:
      # Of joined MP3 files, the next one's tags are no sound.
      damaged += bytes(packet)[:3] not in (b'ID3', b'TAG', b'APE')
      if damaged > good + 1000:
        raise _unreadable(name, e) from e
      continue
    good += 1
    yield from frames
  if damaged and not good:
    raise _unreadable(name, 'nothing in it decodes')
  if damaged:
    logging.warning('%s: %d damaged packets of %d are left out', name, damaged, damaged + good)


def _joined(first, frames, name):
  """Blocks of about `_BLOCK` samples, of one rate each."""
  waiting, count, rate = [], 0, check_rate(first.sample_rate, name)
  for frame in itertools.chain([first], frames):
    if count >= _BLOCK or frame.sample_rate != rate:
      yield np.concatenate(waiting), rate
      waiting, count, rate = [], 0, check_rate(frame.sample_rate, name)
    waiting.append(_mono(frame))
    count += len(waiting[-1])
  yield np.concatenate(waiting), rate


def _mono(frame):
  """Float32 `[samples]` of a decoded frame of any sample format."""
  samples = frame.to_ndarray()  # planar [channels, samples], else [1, samples * channels]
  if not frame.format.is_planar:
    samples = samples.reshape(-1, frame.layout.nb_channels).T
  if np.issubdtype(samples.dtype, np.integer):
    samples = samples / float(np.iinfo(samples.dtype).max // 2 + 1) - 1 if samples.dtype == np.uint8 else (
        samples / float(np.iinfo(samples.dtype).max + 1))
  return samples.astype(np.float32).mean(axis=0)
