"""Clips and a large network's features of them, for a small network to learn.

The features are computed once, of each clip whole and clean, and lie with its audio in the run's folder:
half a gigabyte an hour for 512 of them. Crops of both are in step: they are cut at whole frames.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.audio import at_codec_level
from affectcodec_jax.common import progress
from affectcodec_jax.common.constants import HOP_LENGTH, SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion.teachers import teacher_features
from affectcodec_jax.inference import weights

_MAX_FRAMES = 30 * SAMPLE_RATE // HOP_LENGTH  # of a longer clip only the beginning is learned from
_BATCH_FRAMES = 3200  # frames that the large network reads at a time: half a gigabyte of memory


class Clips(NamedTuple):
  """Clips end to end.

  Attributes:
    audio: float16 `[frames, 320]`, at the codec's level.
    features: float16 `[frames, dim]`.
    ends: `[clips + 1]`; clip i has the frames from ends[i] to ends[i + 1].
    emotion: `[clips]`, -1 where it is not known.
  """

  audio: np.ndarray
  features: np.ndarray
  ends: np.ndarray
  emotion: np.ndarray


def read_clips(source, config, params, folder):
  """`Clips` of a source; computed if the folder holds none of the same recordings.

  Args:
    source: a source (data/pipeline.py).
    config: a configuration whose section `teacher` describes the large network; of the rest `data`, `seed`.
    params: of that.
    folder: where they are kept.

  Raises:
    UserError: nothing in the source can be read.
  """
  folder = pathlib.Path(folder)
  paths = [folder / name for name in ('audio.npy', 'features.npy', 'clips.npz')]
  network = weights.fingerprint({k: config.teacher[k] for k in ('kind', 'dim', 'layer')}, params, {}).hex()
  recordings = (source.digest() if hasattr(source, 'digest')
                else f'{config.data.source} {config.data.train_split} {config.seed}')
  what = f'{len(source)} {recordings} {network}'
  if all(p.exists() for p in paths):
    with np.load(paths[2]) as kept:
      if str(kept['what']) == what:
        return Clips(*(np.load(p, 'r') for p in paths[:2]), kept['ends'], kept['emotion'])
  sounds, emotion = [], []
  for i in range(len(source)):
    if (item := source[i]) is not None:
      sounds.append(at_codec_level(item['audio'])[:_MAX_FRAMES * HOP_LENGTH].astype(np.float16))
      emotion.append(item['emotion'])
  if not sounds:
    raise UserError('none of the clips to train on could be read; check the data')
  lengths = [-(-len(sound) // HOP_LENGTH) for sound in sounds]
  ends = np.cumsum([0, *lengths])
  frames = int(ends[-1])  # a plain number, for the headers of the files
  folder.mkdir(parents=True, exist_ok=True)
  paths[2].unlink(missing_ok=True)  # it says that the others are whole
  audio = np.lib.format.open_memmap(paths[0], 'w+', np.float16, (frames, HOP_LENGTH))
  for sound, start, count in zip(sounds, ends, lengths):
    audio[start:start + count].reshape(-1)[:len(sound)] = sound
  features = np.lib.format.open_memmap(paths[1], 'w+', np.float16, (frames, config.teacher.dim))
  for start, found in _features(audio, ends, config, params):
    features[start:start + len(found)] = found
  _take_out_place(features, ends)
  emotion = np.array(emotion)
  np.savez(paths[2], ends=ends, emotion=emotion, what=what)  # last: what is there is whole
  return Clips(audio, features, ends, emotion)


def _features(audio, ends, config, params):
  """Yields (first frame, features `[frames, dim]`) of each clip, in batches of like length."""
  apply = jax.jit(lambda audio, mask: teacher_features(config, {'teacher': params}, audio, mask))
  lengths = np.diff(ends)
  order = list(np.argsort(lengths, kind='stable'))
  shown = progress.bar(total=len(order), desc='features', unit='clip')
  while order:
    size = _round_up(lengths[order[0]])
    batch = max(1, _BATCH_FRAMES // size)
    some = [i for i in order[:batch] if lengths[i] <= size]
    sound, mask = np.zeros((batch, size, HOP_LENGTH), np.float32), np.zeros((batch, size), bool)
    mask[:, 0] = True  # rows without a clip too: what has no frame means nothing
    for row, i in enumerate(some):
      sound[row, :lengths[i]], mask[row, :lengths[i]] = audio[ends[i]:ends[i + 1]], True
    found = np.asarray(apply(sound.reshape(batch, -1), mask))
    yield from ((ends[i], found[row, :lengths[i]]) for row, i in enumerate(some))
    order = order[len(some):]
    shown.update(len(some))
  shown.close()


def _take_out_place(features, ends, doubt=20):
  """Subtracts, in place, what the frames of all clips at the same place in theirs have in common.

  Whisper's features say where in the recording a frame is, which cannot be heard. Of a place that few clips
  reach, `doubt` weighs against taking their own for it.
  """
  lengths = np.diff(ends)
  mean = features[::50].mean(axis=0, dtype=np.float32)
  total = np.zeros((lengths.max(), features.shape[1]), np.float32)
  for start, count in zip(ends, lengths):
    total[:count] += features[start:start + count] - mean
  reached = (np.arange(lengths.max())[:, None] < lengths).sum(axis=1)  # [places]
  common = total / (reached + doubt)[:, None]
  for start, count in zip(ends, lengths):
    features[start:start + count] -= common[:count].astype(np.float16)


def _round_up(frames):
  """At least so many frames, by at most a fifth more above 3 s: few sizes, few compilations."""
  step = 25 if frames <= 150 else 50 if frames <= 300 else 100 if frames <= 600 else 300
  return -(-frames // step) * step


class Scale(NamedTuple):
  """Mean and deviation of a guide's features `[dim]`, and of crops' `moments` of them `[2 dim]`."""

  frames: tuple
  crops: tuple


def scale(clips, frames, count=1000):
  """`Scale` of features, from `count` crops of `frames` frames."""
  batch = next(batches(clips, count, frames, seed=0))
  x, mask = batch['features'], batch['mask']
  of_frames = x[mask].mean(axis=0), x[mask].std(axis=0) + 1e-3
  y = np.asarray(moments((x - of_frames[0]) / of_frames[1], mask))
  return Scale(of_frames, (y.mean(axis=0), y.std(axis=0) + 1e-3))


def moments(x, mask):
  """Mean and deviation of `[B, T, dim]` over the frames of mask `[B, T]`: `[B, 2 dim]`."""
  weight = (mask / mask.sum(axis=1, keepdims=True))[..., None]
  mean = jnp.sum(weight * x, axis=1)
  variance = jnp.sum(weight * (x - mean[:, None]) ** 2, axis=1)
  return jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], axis=-1)


def batches(clips, batch_size, frames, seed):
  """Endless crops of `frames` frames, each clip once an epoch; shorter clips are followed by silence.

  Yields:
    `{'audio': float32 [batch, frames * 320], 'features': float32 [batch, frames, dim], 'mask': bool
    [batch, frames], 'emotion': [batch]}`.
  """
  rng = np.random.default_rng(seed)
  order = np.array([], int)
  while True:
    while len(order) < batch_size:
      order = np.concatenate([order, rng.permutation(len(clips.emotion))])
    chosen, order = order[:batch_size], order[batch_size:]
    audio = np.zeros((batch_size, frames, HOP_LENGTH), np.float32)
    features = np.zeros((batch_size, frames, clips.features.shape[1]), np.float32)
    mask = np.zeros((batch_size, frames), bool)
    for row, i in enumerate(chosen):
      spare = clips.ends[i + 1] - clips.ends[i] - frames
      start = clips.ends[i] + (rng.integers(spare + 1) if spare > 0 else 0)
      count = min(frames, clips.ends[i + 1] - start)
      audio[row, :count] = clips.audio[start:start + count]
      features[row, :count] = clips.features[start:start + count]
      mask[row, :count] = True
    yield {'audio': audio.reshape(batch_size, -1), 'features': features, 'mask': mask,
           'emotion': clips.emotion[chosen].astype(np.int32)}
