"""Streams: audio or codes come in pieces of any size, and what they make goes out as soon as it is certain.

The networks are not causal. A chunk of frames is computed, in a window of one fixed size, once the
`lookahead` frames after it are in: with as many as the networks see (`models.context`) it comes out as it
does from the whole recording. Fewer make less latency, and a guess: what is not in yet is taken to be what
follows a recording, silence for the encoder and the last frame again for the decoder.
"""

import numpy as np

from affectcodec_jax.audio import apply_gain, to_mono
from affectcodec_jax.common.arrays import as_array, check_number
from affectcodec_jax.common.constants import HOP_LENGTH, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.inference.pieces import cut, inside
from affectcodec_jax.inference.pooling import join_parts, pool_parts
from affectcodec_jax.models import source_filter

CHUNK = 10  # frames: 200 ms
LONGEST = 1000  # frames of a chunk: 20 s
# Amplitude of a lost frame, by the distance in frames from the nearest that is not lost.
FADE = (1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


class StreamEncoder:
  """Audio in pieces to codes; `api.Pretrained.stream_encoder` makes it.

  Attributes:
    latency_samples: the codes of a sample's frame are out when at most so many more samples are in.
    latency: the same in seconds.
    gain_db: applied before encoding; the decoder has to take it off.
    embedding: utterance embedding `[adapter_dim]` of the newest codes, None before there are any.
  """

  def __init__(self, inference, params, frozen, stages, chunk_frames, lookahead, gain_db, utterance):
    if inference.emotion_context is None:
      raise UserError('the teacher of this codec needs a whole recording at once and cannot encode a '
                      'stream; train it with a student (python -m affectcodec_jax teacher distil)')
    self._inference, self._params, self._frozen, self._stages = inference, params, frozen, stages
    self._context = max(inference.emotion_context, inference.encoder_context)
    self._chunk, self._lookahead = _checked(chunk_frames, lookahead, self._context, gain_db)
    self._utterance = utterance
    self.gain_db = gain_db
    self.latency_samples = (self._chunk + self._lookahead) * HOP_LENGTH
    self.latency = self.latency_samples / SAMPLE_RATE
    self._begin()
    self._encode(0, 1)  # compiles: no push has to wait for that
    self._begin()
    self.embedding = None

  def _begin(self):
    self._audio = np.zeros(0, np.float32)  # at the codec's level, from frame `_first` on
    self._first, self._next, self._samples = 0, 0, 0
    self._pooled = []  # what the frames so far add to the utterance's embedding

  def push(self, audio):
    """Takes samples, gives the codes that are certain now.

    Args:
      audio: `[samples]` or `[samples, channels]` at 16 kHz, float in [-1, 1] or integer PCM; may be empty.

    Returns:
      int32 `[frames, stages]`; often no frame.

    Raises:
      UserError: not such an array, or samples that are not finite.
    """
    audio = as_array(audio, 'audio')
    if audio.ndim == 2 and len(audio) == 1 < audio.shape[1]:
      raise UserError(f'audio: shape {list(audio.shape)} would be a single sample of {audio.shape[1]} '
                      'channels, or a row of samples; give the mean of the channels, or longer pieces')
    if audio.size:
      audio = apply_gain(to_mono(audio), self.gain_db)
      self._audio = np.concatenate([self._audio, audio])
      self._samples += len(audio)
    return self._advance(self._samples // HOP_LENGTH, last=False)

  def flush(self):
    """Ends the stream: gives its last codes, `[frames, stages]`. The next `push` begins another stream."""
    codes = self._advance(-(-self._samples // HOP_LENGTH), last=True)
    self._begin()
    return codes

  def _advance(self, frames, last):
    codes = [np.zeros((0, self._stages), np.int32)]
    for start, end in _ready(self._next, self._chunk, self._lookahead, frames, last):
      codes.append(self._encode(start, end)[:end - start])
      self._next = start + self._chunk
    first = max(self._next - self._context, 0)
    self._audio = self._audio[(first - self._first) * HOP_LENGTH:]
    self._first = first
    return np.concatenate(codes)

  def _encode(self, start, end):
    """Codes `[chunk, stages]` of the frames from `start` on, from the audio before frame `end`."""
    run, at = self._inference, start - self._first
    audio = self._audio[:(end - self._first) * HOP_LENGTH]
    emotion_audio, encoder_audio = (cut(audio, at, self._chunk, context)[None]
                                    for context in (run.emotion_context, run.encoder_context))
    mask = inside(end, start, self._chunk, run.emotion_context)[None]
    u_e, part = run.emotion(self._params, self._frozen, emotion_audio, mask, run.emotion_context)
    if self._utterance is not None:
      self.embedding = self._utterance
    elif part:
      self._pooled = [join_parts([*self._pooled, tuple(np.asarray(p)[0] for p in part)])]
      self.embedding = pool_parts(self._pooled)
    else:
      self.embedding = np.zeros(0, np.float32)
    codes = run.quantize(self._params, encoder_audio, u_e, self.embedding[None])
    return np.asarray(codes)[0, :, :self._stages]


class StreamDecoder:
  """Codes in pieces to audio; `api.Pretrained.stream_decoder` makes it.

  Attributes:
    latency_samples: a frame's audio is out when the codes of at most so many more samples are in.
    latency: the same in seconds.
  """

  def __init__(self, inference, params, stages, num_codes, chunk_frames, lookahead, gain_db, most=255):
    self._inference, self._params, self._stages, self._num_codes = inference, params, stages, num_codes
    self._most = most  # stages of the codec: more are another codec's, or codes that lie on their side
    self._context = inference.decoder_context
    self._chunk, self._lookahead = _checked(chunk_frames, lookahead, self._context, gain_db)
    self._gain = np.float32(10 ** (-gain_db / 20))
    self.latency_samples = (self._chunk + self._lookahead - 1) * HOP_LENGTH
    self.latency = self.latency_samples / SAMPLE_RATE
    self._begin()
    self.push(np.zeros((1, stages), np.int32))
    self.flush()  # compiles: no push has to wait for that

  def _begin(self):
    self._codes = np.zeros((0, self._stages), np.int32)  # from frame `_first` on
    self._lost = np.zeros(0, bool)
    self._first, self._next = 0, 0
    self._phase, self._increment = np.int32(0), np.int32(0)  # of the source, at frame `_next`

  def push(self, codes):
    """Takes codes, gives the audio that is certain now.

    Args:
      codes: integers `[frames, stages]`, of this rate or a higher one. A frame with a code out of range
        counts as lost.

    Returns:
      float32 `[samples]`, 320 a frame; often none.

    Raises:
      UserError: not such an array.
    """
    codes = as_array(codes, 'codes')
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer) or not (
        self._stages <= codes.shape[1] <= self._most):
      raise UserError(f'this stream takes integer codes [frames, {self._stages} to {self._most} stages], '
                      f'got {codes.dtype} {list(codes.shape)}; give stream_decoder the kbps of the encoder')
    codes = codes[:, :self._stages]
    return self._append(codes, ((codes < 0) | (codes >= self._num_codes)).any(axis=1))

  def push_lost(self, frames=1):
    """Tells that so many frames are lost; gives audio as `push`."""
    if not isinstance(frames, (int, np.integer)) or frames < 0:
      raise UserError(f'{frames!r} lost frames: a number from 0 on')
    return self._append(np.zeros((frames, self._stages), np.int32), np.ones(frames, bool))

  def flush(self):
    """Ends the stream: gives the audio that is left. The next `push` begins another stream."""
    audio = self._advance(last=True)
    self._begin()
    return audio

  def _append(self, codes, lost):
    self._codes = np.concatenate([self._codes, codes.astype(np.int32)])
    self._lost = np.concatenate([self._lost, lost])
    return self._advance(last=False)

  def _advance(self, last):
    audio, frames = [np.zeros(0, np.float32)], self._first + len(self._codes)
    for start, end in _ready(self._next, self._chunk, self._lookahead, frames, last):
      audio.append(self._decode(start, end)[:(end - start) * HOP_LENGTH])
      self._next = start + self._chunk
    first = max(self._next - self._context, 0)
    self._codes, self._lost = self._codes[first - self._first:], self._lost[first - self._first:]
    self._first = first
    return np.concatenate(audio)

  def _decode(self, start, end):
    """Audio `[chunk * 320]` of the frames from `start` on, from the codes before frame `end`."""
    around = np.arange(-self._context, self._chunk + self._context)
    begin = max(start - self._context, 0)  # no more than that: sizes of pieces must not show
    view = slice(begin - self._first, end - self._first)
    codes, lost = self._codes[view], self._lost[view]
    if lost.all():
      self._advance_source(np.full(self._chunk + 2 * source_filter.CONTEXT, self._increment))
      return np.zeros(self._chunk * HOP_LENGTH, np.float32)
    at = np.clip(start + around, 0, end - 1) - begin  # past its ends a recording stays as it is
    before, after, weight, distance = (x[at] for x in bridge(lost))
    latent = self._inference.latent_between(
        self._params, codes[before][None], codes[after][None], weight[None])
    source = self._source(latent, start, end) if self._inference.has_source else None
    audio = np.asarray(self._inference.synthesise(self._params, latent, source))[0]
    if lost.any():
      fade = np.asarray(FADE)[np.minimum(distance, len(FADE) - 1)]
      # Middle of each sample, in frames of the chunk.
      middle = (np.arange(self._chunk * HOP_LENGTH) + 0.5) / HOP_LENGTH - 0.5
      audio = audio * np.interp(middle, around, fade).astype(np.float32)
    return audio * self._gain


  def _source(self, latent, start, end):
    """The `Source` of a chunk; goes on to the next one."""
    beyond = source_filter.CONTEXT
    at = np.clip(np.arange(start - beyond, start + self._chunk + beyond), 0, end - 1) - (start - beyond)
    increments = np.asarray(self._inference.pitch(self._params, latent))[0][at]
    rest = self._inference.pitch_context  # frames further away, which do not matter
    source = source_filter.Source(
        np.pad(increments, rest, mode='edge')[None], np.full(1, self._context, np.int32),
        self._phase[None], source_filter.wrap([start * HOP_LENGTH]))
    self._advance_source(increments)
    return source

  def _advance_source(self, increments):
    first, last = source_filter.CONTEXT, source_filter.CONTEXT + self._chunk
    phases = source_filter.phases_of_frames(increments).astype(np.int64)
    self._phase = source_filter.wrap(self._phase + phases[last] - phases[first])
    self._increment = increments[last - 1]


def bridge(lost):
  """How lost frames are made of those around them: the latent in between, by time, at a lower level.

  Args:
    lost: bool `[frames]`, not all of them True.

  Returns:
    `[frames]` each: the received frame before (the first one, where there is none) and after (the last
    one), the weight of the one after, float32 in [0, 1], and the distance of the nearer. A frame that is
    not lost is its own, before and after.
  """
  received, at = np.flatnonzero(~lost), np.arange(len(lost))
  after = received[np.minimum(np.searchsorted(received, at), len(received) - 1)]
  before = received[np.maximum(np.searchsorted(received, at, side='right') - 1, 0)]
  weight = np.clip((at - before) / np.maximum(after - before, 1), 0, 1).astype(np.float32)
  return before, after, weight, np.minimum(np.abs(at - before), np.abs(at - after))


def _ready(start, size, lookahead, frames, last):
  """Yields (first frame, end of what it may see) of the chunks that can be computed with `frames` in."""
  while start + size + lookahead <= frames or (last and start < frames):
    yield start, min(start + size + lookahead, frames)
    start += size


def _checked(chunk, lookahead, context, gain_db):
  """(frames of a chunk, frames of lookahead that matter)."""
  whole = all(isinstance(n, (int, np.integer)) for n in (chunk, 0 if lookahead is None else lookahead))
  if not whole or not 1 <= chunk <= LONGEST or (lookahead is not None and lookahead < 0):
    raise UserError(f'chunk of {chunk} and lookahead of {lookahead} frames: a chunk has 1 to {LONGEST}, '
                    'and the lookahead is not negative')
  gain_db = check_number(gain_db, 'gain_db')
  if gain_db is None or not abs(gain_db) <= 100:
    raise UserError(f'gain of {gain_db} dB; give one within 100 dB')
  # Plain numbers: positions in a stream outgrow NumPy's short ones.
  return int(chunk), context if lookahead is None else min(int(lookahead), context)
