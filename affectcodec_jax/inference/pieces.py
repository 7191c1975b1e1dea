"""Recordings of any length through the codec, piece by piece: tokens and audio as of the whole at once.

A piece is `PIECE_FRAMES` with as much on either side as the networks see (`models.context`); what that
adds is cut off again. A recording goes on as silence before its start and after its end, its codes as their
first and last frame. So neither the length of a piece, nor what else is in a batch, nor padding shows. The
one thing that needs the whole recording, the utterance's embedding, is pooled over all pieces first.
"""

import functools

import jax
import numpy as np

from affectcodec_jax.common.constants import HOP_LENGTH, PIECE_FRAMES, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion.teachers import emotion_context, encoder_features
from affectcodec_jax.inference.pooling import pool_parts
from affectcodec_jax.inference.refine import make_refine
from affectcodec_jax.models import source_filter
from affectcodec_jax.models.codec import Codec, make_codec
from affectcodec_jax.models.context import decoder_context, encoder_context

MAX_WHOLE_SECONDS = 600  # of a recording, for a teacher with attention: it needs the whole at once


class Inference:
  """Compiled encoder and decoder of a configuration; parameters come with each call.

  Args:
    config: the configuration.
    frozen: parameters of the network that the encoder reads, for their shapes.
    chunk: frames of a piece.

  Attributes:
    emotion_context, encoder_context, decoder_context: frames that each sees on either side of a piece; the
      first is None for a teacher that needs the whole recording.
    pitch_context: frames less on either side of what `pitch` gives.
    has_source: whether the decoder is driven by a source, of `pitch`.
    emotion, quantize, refine, latent, latent_between, pitch, synthesise: the compiled programs, see
      `__init__`.
  """

  def __init__(self, config, frozen, chunk=PIECE_FRAMES):
    self.chunk, self.num_stages = chunk, config.model.num_stages
    self.emotion_context = emotion_context(config, frozen)
    self.encoder_context = acoustic = encoder_context(config.model)
    self.decoder_context = around = decoder_context(config.model)
    codec = make_codec(config)

    @functools.partial(jax.jit, static_argnums=4)
    def emotion(params, frozen, audio, mask, context):
      """U_e `[B, T, emotion_dim]` and what the frames add to the utterance embedding.

      Of audio `[B, (T + 2 context) * 320]` and the mask of its frames `[B, T + 2 context]`.
      """
      features = encoder_features(config, frozen, audio, mask)
      return codec.apply({'params': params}, features, mask, context, method=Codec.analyse_emotion)

    @jax.jit
    def quantize(params, audio, u_e, embedding):
      """Codes `[B, T, stages]` of audio with the encoder's context around it, U_e and the embedding."""
      u = codec.apply({'params': params}, audio, u_e, embedding, acoustic, method=Codec.analyse_acoustic)
      return codec.apply({'params': params}, u, method=Codec.quantize).indices

    search = make_refine(config)

    @functools.partial(jax.jit, static_argnames='stages')
    def refine(params, audio, u_e, embedding, first, last, steps, stages):
      """Codes `[B, T, stages]` by a search of `inference.refine`, of a piece with the decoder's context.

      Of audio with the encoder's context around that, U_e `[B, T + 2 decoder_context, emotion_dim]`.
      """
      u = codec.apply({'params': params}, audio, u_e, embedding, acoustic, method=Codec.analyse_acoustic)
      beyond = (acoustic + around) * HOP_LENGTH
      return search(params, u, audio[:, beyond:audio.shape[1] - beyond], first, last, steps, stages)

    @jax.jit
    def latent(params, codes):
      """U `[B, T, dim]` of codes `[B, T, m]`."""
      return codec.apply({'params': params}, codes, method=Codec.lookup)

    @jax.jit
    def latent_between(params, before, after, weight):
      """U between those of two lists of codes `[B, T, m]`, the second's share being `weight` `[B, T]`."""
      a, b, weight = latent(params, before), latent(params, after), weight[..., None]  # [B, T, 1]
      return (1 - weight) * a + weight * b

    @jax.jit
    def pitch(params, latent):
      """Phase increments `[B, T - 2 pitch_context]` of the source, of U `[B, T, dim]`."""
      increments = codec.apply({'params': params}, latent, method=Codec.pitch)
      return increments[:, self.pitch_context:increments.shape[1] - self.pitch_context]

    @jax.jit
    def synthesise(params, latent, source=None):
      """Audio `[B, (T - 2 decoder_context) * 320]` of U `[B, T, dim]` and its `source_filter.Source`."""
      audio = codec.apply({'params': params}, latent, source, method=Codec.synthesise)
      return audio[:, around * HOP_LENGTH:audio.shape[1] - around * HOP_LENGTH]

    # Pitch goes `source_filter.CONTEXT` frames beyond a piece: the source at its ends needs those.
    self.has_source, self.pitch_context = config.model.backbone == 'lite', around - source_filter.CONTEXT
    self.emotion, self.quantize, self.refine = emotion, quantize, refine
    self.latent, self.latent_between = latent, latent_between
    self.pitch, self.synthesise = pitch, synthesise

  def encode(self, params, frozen, recordings, batch=1, progress=list, refine_steps=0, stages=None):
    """Codes of recordings, `[samples]` each, at the codec's level.

    Args:
      params, frozen: of the codec and of the network that its encoder reads.
      recordings: list of `[samples]` float32.
      batch: pieces computed at once.
      progress: goes through a list of batches, as `tqdm.tqdm` does; called twice.
      refine_steps: of a search for better codes (see `inference.refine`), 0 for none.
      stages: of the codes; None is all.

    Returns:
      int32 `[ceil(samples / 320), stages]` of each.

    Raises:
      UserError: too long for a teacher that needs the whole recording at once.
    """
    frames = [-(-len(r) // HOP_LENGTH) for r in recordings]
    u_e, embedding = self.encode_emotion(params, frozen, recordings, batch, progress)
    stages = stages or self.num_stages
    codes = [np.zeros((n, stages), np.int32) for n in frames]
    beyond = self.decoder_context if refine_steps else 0  # what the search decodes goes so far
    for group in progress(list(self._batches(frames, batch))):
      pieces = [cut(recordings[i], start, size, self.encoder_context + beyond) for i, start, size in group]
      emotion = [_rows(u_e[i], start - beyond, size + 2 * beyond) for i, start, size in group]
      of_pieces = [_stack(x, batch) for x in (pieces, emotion, [embedding[i] for i, _, _ in group])]
      if refine_steps:
        first = [np.int32(max(beyond - start, 0)) for _, start, _ in group]
        last = [np.int32(min(frames[i] - start + beyond, size + 2 * beyond) - 1)
                for i, start, size in group]
        indices = self.refine(params, *of_pieces, _stack(first, batch), _stack(last, batch),
                              refine_steps, stages)
      else:
        indices = self.quantize(params, *of_pieces)
      indices = np.asarray(indices)[..., :stages]
      for k, (i, start, size) in enumerate(group):
        codes[i][start:start + size] = indices[k][:frames[i] - start]
    return codes

  def encode_emotion(self, params, frozen, recordings, batch=1, progress=list):
    """The emotion path alone, of the arguments of `encode`.

    Returns:
      Lists of U_e, float32 `[frames, emotion_dim]`, and of the utterance embedding `[adapter_dim]`, of a
      codec without conditioning `[0]`, of each recording.

    Raises:
      UserError: too long for a teacher that needs the whole recording at once.
    """
    frames = [-(-len(r) // HOP_LENGTH) for r in recordings]
    u_e = [[] for _ in recordings]
    parts = [[] for _ in recordings]
    context = self.emotion_context
    if context is None and max(map(len, recordings), default=0) > MAX_WHOLE_SECONDS * SAMPLE_RATE:
      raise UserError(f'longer than {MAX_WHOLE_SECONDS} s, and the teacher of this codec needs a whole '
                      'recording at once; train it with a student (python -m affectcodec_jax teacher '
                      'distil) or cut the recording')
    whole, context = context is None, context or 0
    for group in progress(list(self._batches(frames, batch, whole))):
      pieces = [cut(recordings[i], start, size, context) for i, start, size in group]
      mask = [inside(frames[i], start, size, context) for i, start, size in group]
      latent, part = jax.device_get(self.emotion(
          params, frozen, _stack(pieces, batch), _stack(mask, batch), context))
      for k, (i, start, _) in enumerate(group):
        u_e[i].append(latent[k][:frames[i] - start])
        parts[i].append(tuple(p[k] for p in part))
    u_e = [np.concatenate(u) for u in u_e]
    embedding = [pool_parts(p) if p[0] else np.zeros(0, np.float32) for p in parts]
    return u_e, embedding

  def decode(self, params, codes, batch=1, progress=list):
    """Audio, float32 `[frames * 320]` each, of codes `[frames, m]` of any one number of stages."""
    frames = [len(c) for c in codes]
    audio = [np.zeros(n * HOP_LENGTH, np.float32) for n in frames]
    if self.has_source:
      increments = self._increments(params, codes, batch)
      phases = [source_filter.phases_of_frames(x) for x in increments]
    for group in progress(list(self._batches(frames, batch))):
      latent = self.latent(params, self._pieces(codes, group, batch))
      source = None
      if self.has_source:
        source = source_filter.Source(
            self._pieces(increments, group, batch), np.full(batch, self.decoder_context, np.int32),
            _stack([phases[i][start] for i, start, _ in group], batch),
            _stack([source_filter.wrap(start * HOP_LENGTH) for _, start, _ in group], batch))
      samples = np.asarray(self.synthesise(params, latent, source))
      for k, (i, start, size) in enumerate(group):
        piece = audio[i][start * HOP_LENGTH:(start + size) * HOP_LENGTH]
        piece[:] = samples[k][:len(piece)]
    return audio

  def _increments(self, params, codes, batch):
    """Phase increments of the source, int32 `[frames]`, of codes `[frames, m]` each."""
    increments = [np.zeros(len(c), np.int32) for c in codes]
    beyond = source_filter.CONTEXT
    for group in self._batches([len(c) for c in codes], batch):
      pitch = np.asarray(self.pitch(params, self.latent(params, self._pieces(codes, group, batch))))
      for k, (i, start, size) in enumerate(group):
        piece = increments[i][start:start + size]
        piece[:] = pitch[k][beyond:beyond + len(piece)]
    return increments

  def _pieces(self, values, group, batch):
    """Pieces of `[frames, …]` with the decoder's context; beyond its ends a recording stays as it is."""
    pieces = []
    for i, start, size in group:
      at = np.arange(start - self.decoder_context, start + size + self.decoder_context)
      pieces.append(values[i][np.clip(at, 0, len(values[i]) - 1)])
    return _stack(pieces, batch)

  def working_memory(self, params, frozen, frames):
    """Bytes besides weights that XLA reserves for a piece of so many frames: {'encode', 'decode'}."""
    size, context = min(bucket(frames), self.chunk), self.emotion_context or 0
    audio = np.zeros(frames * HOP_LENGTH, np.float32)
    emotion_audio = np.stack([cut(audio, 0, size, context)])
    mask = np.stack([inside(frames, 0, size, context)])
    u_e, part = self.emotion(params, frozen, emotion_audio, mask, context)
    encoder_audio = np.stack([cut(audio, 0, size, self.encoder_context)])
    embedding = pool_parts([tuple(p[0] for p in part)]) if part else np.zeros(0, np.float32)
    codes = np.asarray(self.quantize(params, encoder_audio, u_e, embedding[None]))
    around = np.zeros((1, size + 2 * self.decoder_context, codes.shape[-1]), np.int32)
    latent, zero = self.latent(params, around), np.zeros(1, np.int32)
    source = source_filter.Source(around[..., 0] + 1, zero, zero, zero) if self.has_source else None
    programs = {'encode': [self.emotion.lower(params, frozen, emotion_audio, mask, context),
                           self.quantize.lower(params, encoder_audio, u_e, embedding[None])],
                'decode': [self.synthesise.lower(params, latent, source)]}
    return {name: max(p.compile().memory_analysis().temp_size_in_bytes for p in lowered)
            for name, lowered in programs.items()}

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


def cut(audio, start, size, context):
  """Samples of `size` frames from frame `start` on and of `context` on either side; zeros outside."""
  piece = np.zeros((size + 2 * context) * HOP_LENGTH, np.float32)
  first = (start - context) * HOP_LENGTH
  inside = audio[max(first, 0):first + len(piece)]
  at = max(-first, 0)
  piece[at:at + len(inside)] = inside
  return piece


def inside(frames, start, size, context):
  """Which frames of such a piece the recording has, bool `[size + 2 * context]`."""
  at = np.arange(start - context, start + size + context)
  return (at >= 0) & (at < frames)


def _rows(values, start, size):
  """Rows `start` to `start + size` of `[frames, dim]`, zeros outside."""
  before = max(-start, 0)
  rows = values[start + before:start + size]
  return np.pad(rows, ((before, size - before - len(rows)), (0, 0)))


def _stack(pieces, batch):
  """`[batch, ...]`; the last piece fills up: one shape to compile."""
  return np.stack(list(pieces) + [pieces[-1]] * (batch - len(pieces)))
