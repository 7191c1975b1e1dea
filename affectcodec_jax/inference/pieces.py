"""Recordings of any length through the codec, piece by piece: tokens and audio as of the whole at once.

A piece is `CHUNK` frames with as much on either side as the networks see (`models.context`); what that
adds is cut off again. A recording goes on as silence before its start and after its end, its codes as their
first and last frame. So neither the length of a piece, nor what else is in a batch, nor padding shows. The
one thing that needs the whole recording, the utterance's embedding, is pooled over all pieces first.
"""

import functools

import jax
import numpy as np

from affectcodec_jax.audio import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion.teachers import emotion_context, encoder_features
from affectcodec_jax.models.codec import Codec, hop_length, make_codec
from affectcodec_jax.models.conditioning import combine
from affectcodec_jax.models.context import decoder_context, encoder_context

CHUNK = 1000  # frames: 20 s
MAX_WHOLE_SECONDS = 600  # of a recording that a teacher with attention has to hear as a whole


class Inference:
  """Compiled encoder and decoder of a configuration; parameters come with each call.

  Args:
    config: the configuration.
    frozen: parameters of the network that the encoder reads, for their shapes.
    chunk: frames of a piece.
  """

  def __init__(self, config, frozen, chunk=CHUNK):
    self.hop_length, self.chunk = hop_length(config.model), chunk
    self.emotion_context = emotion_context(config, frozen)
    self.encoder_context = acoustic = encoder_context(config.model)
    self.decoder_context = around = decoder_context(config.model)
    codec, hop = make_codec(config), self.hop_length

    @functools.partial(jax.jit, static_argnums=4)
    def emotion(params, frozen, audio, mask, context):
      features = encoder_features(config, frozen, audio, mask)
      return codec.apply({'params': params}, features, mask, context, method=Codec.analyse_emotion)

    @jax.jit
    def quantize(params, audio, u_e, embedding):
      u = codec.apply({'params': params}, audio, u_e, embedding, acoustic, method=Codec.analyse_acoustic)
      return codec.apply({'params': params}, u, method=Codec.quantize).indices

    def from_latent(params, latent):
      audio = codec.apply({'params': params}, latent, method=Codec.synthesise)
      return audio[:, around * hop:audio.shape[1] - around * hop]

    def lookup(params, codes):
      return codec.apply({'params': params}, codes, method=Codec.lookup)

    @jax.jit
    def synthesise(params, codes):
      return from_latent(params, lookup(params, codes))

    @jax.jit
    def synthesise_between(params, before, after, weight):
      a, b, weight = lookup(params, before), lookup(params, after), weight[..., None]  # [B, T, 1]
      return from_latent(params, (1 - weight) * a + weight * b)

    self.emotion, self.quantize = emotion, quantize
    self.synthesise, self.synthesise_between = synthesise, synthesise_between

  def encode(self, params, frozen, recordings, batch=1):
    """Codes of recordings, `[samples]` each, at the codec's level.

    Args:
      params, frozen: of the codec and of the network that its encoder reads.
      recordings: list of `[samples]` float32.
      batch: pieces computed at once.

    Returns:
      int32 `[ceil(samples / 320), stages]` of each.

    Raises:
      UserError: too long for a teacher that has to hear it as a whole.
    """
    frames = [-(-len(r) // self.hop_length) for r in recordings]
    u_e, embedding = self.hear(params, frozen, recordings, batch)
    codes = [np.zeros((n, 0), np.int32) for n in frames]
    for group in self._batches(frames, batch):
      pieces = [cut(recordings[i], start, size, self.encoder_context, self.hop_length)
                for i, start, size in group]
      emotion = [_rows(u_e[i], start, size) for i, start, size in group]
      told = np.asarray(self.quantize(params, _stack(pieces, batch), _stack(emotion, batch),
                                      _stack([embedding[i] for i, _, _ in group], batch)))
      for k, (i, start, size) in enumerate(group):
        if not codes[i].shape[1]:
          codes[i] = np.zeros((frames[i], told.shape[-1]), np.int32)
        codes[i][start:start + size] = told[k][:frames[i] - start]
    return codes

  def hear(self, params, frozen, recordings, batch=1):
    """The emotion path alone, as `encode`: U_e `[frames, emotion_dim]` and utterance embedding of each.

    Embeddings are `[adapter_dim]`, of a codec without conditioning `[0]`.
    """
    frames = [-(-len(r) // self.hop_length) for r in recordings]
    u_e = [[] for _ in recordings]
    parts = [[] for _ in recordings]
    context = self.emotion_context
    if context is None and max(map(len, recordings)) > MAX_WHOLE_SECONDS * SAMPLE_RATE:
      raise UserError(f'longer than {MAX_WHOLE_SECONDS} s, and the teacher of this codec hears a recording '
                      'as a whole; train it with a student (python -m affectcodec_jax teacher distil) or '
                      'cut the recording')
    whole, context = context is None, context or 0
    for group in self._batches(frames, batch, whole):
      pieces = [cut(recordings[i], start, size, context, self.hop_length) for i, start, size in group]
      mask = [inside(frames[i], start, size, context) for i, start, size in group]
      heard, part = jax.device_get(self.emotion(
          params, frozen, _stack(pieces, batch), _stack(mask, batch), context))
      for k, (i, start, _) in enumerate(group):
        u_e[i].append(heard[k][:frames[i] - start])
        parts[i].append(tuple(p[k] for p in part))
    u_e = [np.concatenate(u) for u in u_e]
    embedding = [combine(p) if p[0] else np.zeros(0, np.float32) for p in parts]
    return u_e, embedding

  def decode(self, params, codes, batch=1):
    """Audio, float32 `[frames * 320]` each, of codes `[frames, m]` of any one number of stages."""
    frames = [len(c) for c in codes]
    audio = [np.zeros(n * self.hop_length, np.float32) for n in frames]
    around = self.decoder_context
    for group in self._batches(frames, batch):
      pieces = [codes[i][np.clip(np.arange(start - around, start + size + around), 0, frames[i] - 1)]
                for i, start, size in group]
      told = np.asarray(self.synthesise(params, _stack(pieces, batch)))
      for k, (i, start, size) in enumerate(group):
        piece = audio[i][start * self.hop_length:(start + size) * self.hop_length]
        piece[:] = told[k][:len(piece)]
    return audio

  def working_memory(self, params, frozen, frames):
    """Bytes besides weights that XLA reserves for a piece of so many frames: {'encode', 'decode'}."""
    size, context = min(bucket(frames), self.chunk), self.emotion_context or 0
    audio = np.zeros(frames * self.hop_length, np.float32)
    heard = np.stack([cut(audio, 0, size, context, self.hop_length)])
    mask = np.stack([inside(frames, 0, size, context)])
    u_e, part = self.emotion(params, frozen, heard, mask, context)
    seen = np.stack([cut(audio, 0, size, self.encoder_context, self.hop_length)])
    embedding = np.stack([combine([tuple(p[0] for p in part)])]) if part else np.zeros((1, 0), np.float32)
    codes = np.asarray(self.quantize(params, seen, u_e, embedding))
    around = np.zeros((1, size + 2 * self.decoder_context, codes.shape[-1]), np.int32)
    programs = {'encode': [self.emotion.lower(params, frozen, heard, mask, context),
                           self.quantize.lower(params, seen, u_e, embedding)],
                'decode': [self.synthesise.lower(params, around)]}
    return {name: max(p.compile().memory_analysis().temp_size_in_bytes for p in of_name)
            for name, of_name in programs.items()}

  def _batches(self, frames, batch, whole=False):
    """Lists of at most `batch` pieces (recording, first frame, frames), of one size each."""
    if batch < 1:
      raise UserError(f'batch of {batch} pieces: at least 1')
    pieces = {}
    for i, n in enumerate(frames):
      if whole or n <= self.chunk:
        pieces.setdefault(bucket(n), []).append((i, 0, bucket(n)))
      else:
        pieces.setdefault(self.chunk, []).extend((i, s, self.chunk) for s in range(0, n, self.chunk))
    for of_size in pieces.values():
      for at in range(0, len(of_size), batch):
        yield of_size[at:at + batch]


def bucket(frames):
  """Frames to compute for `frames`: a multiple of 50 and, from 400 on, at most a quarter more.

  There are few such numbers, so there is little to compile.
  """
  step = max(50, 2 ** (frames.bit_length() - 1) // 4)
  return -(-frames // step) * step


def cut(audio, start, size, context, hop):
  """Samples of `size` frames from frame `start` on and of `context` on either side; zeros outside."""
  piece = np.zeros((size + 2 * context) * hop, np.float32)
  first = (start - context) * hop
  inside = audio[max(first, 0):first + len(piece)]
  at = max(-first, 0)
  piece[at:at + len(inside)] = inside
  return piece


def inside(frames, start, size, context):
  """Which frames of such a piece the recording has, bool `[size + 2 * context]`."""
  at = np.arange(start - context, start + size + context)
  return (at >= 0) & (at < frames)


def _rows(values, start, size):
  """Rows `start` to `start + size` of `[frames, dim]`, zeros after the last."""
  rows = values[start:start + size]
  return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _stack(pieces, batch):
  """`[batch, ...]`; the last piece fills up: one shape to compile."""
  return np.stack(list(pieces) + [pieces[-1]] * (batch - len(pieces)))
