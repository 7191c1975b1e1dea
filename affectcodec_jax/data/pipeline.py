"""From a source to batches, by grain: random access, deterministic, sharded, checkpointable.

A source has a length and items `{'audio': float32 [samples] at 16 kHz, 'emotion': int, 'speaker':
str, 'name': str}`, or None for one that cannot be read. Item i of epoch e is cropped and levelled by
a generator seeded with (seed, e, i), so a run can be repeated and resumed exactly.
"""

import logging
import math
import pathlib

from absl import flags
import grain
import numpy as np

from affectcodec_jax.audio import apply_gain, level_gain
from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import parse_json, write_json
from affectcodec_jax.data.perturb import EQUALISER_BANDS, change_speed, equalise

_SILENCE = 1e-6  # a peak below this, 26 dB under the last bit of 16
_LONG_SECONDS = 30.0  # of longer files only a window this long is read, or as a crop is if that is longer


def make_source(config, split, seed):
  """The source that the `data` section of a configuration names, for one split.

  Raises:
    UserError: an unknown source, or nothing usable there.
  """
  if config.source == 'synthetic':
    from affectcodec_jax.data.synthetic import SyntheticSource
    held_out = split != config.train_split
    count = max(32, config.num_clips // 20) if held_out else config.num_clips
    return SyntheticSource(count, seed=seed, split='valid' if held_out else 'train')
  if config.source == 'folder':
    from affectcodec_jax.data.folder import FolderSource
    return FolderSource(config.path, split, config.min_seconds)
  if config.source == 'arrayrecord':
    from affectcodec_jax.data.arrayrecord import ArrayRecordSource
    return ArrayRecordSource(config.path, split, config.min_seconds)
  if config.source == 'tfds':
    from affectcodec_jax.data.tfds import TfdsSource
    return TfdsSource(config.tfds_name, split, config.tfds_dir or None, config.min_seconds)
  raise UserError(f"data.source='{config.source}'; use synthetic, folder, arrayrecord or tfds")


class _Read(grain.transforms.RandomMap):
  """Index to one training example: a random crop at the codec's level, varied as `config` says."""

  def __init__(self, source, crop_samples, config, pitch):
    self.source, self.crop_samples, self.pitch = source, crop_samples, pitch
    self.gain_db, self.speed, self.equalise_db = config.gain_db, config.speed, config.equalise_db
    self.misses, self.silent = 0, set()

  def random_map(self, index, rng):
    item = self._read(index, rng)
    if item is not None and self._is_silent(index, item['audio']):
      item = None
    if item is None:
      self.misses += 1
      if self.misses >= 2 * len(self.source) + 8:  # a whole epoch and more of nothing
        raise UserError(f'{self.misses} items in a row could not be read, or are digital silence; '
                        'is the data still there?')
      return None
    self.misses = 0
    whole, n = item['audio'], self.crop_samples
    speed = 1 + rng.uniform(-self.speed, self.speed) if self.speed else 1.0
    wanted = math.ceil(n * speed)  # samples that become n
    gain = level_gain(whole) + rng.uniform(-self.gain_db, self.gain_db)
    if len(whole) < wanted:  # short: silence around it, at random
      start = -int(rng.integers(0, wanted - len(whole) + 1))
      audio = np.pad(whole, (-start, wanted - len(whole) + start))
    else:
      start = int(rng.integers(0, len(whole) - wanted + 1))
      if not np.abs(whole[start:start + wanted]).max() > _SILENCE:  # its gradients would have no bounds
        start = min(int(np.abs(whole).argmax()), len(whole) - wanted)
      audio = whole[start:start + wanted]
    audio = change_speed(apply_gain(audio, gain), speed, n)
    if self.equalise_db:
      audio = equalise(audio, rng.uniform(-self.equalise_db, self.equalise_db, EQUALISER_BANDS))
    peak = np.abs(audio).max()
    if peak > 1:
      audio = audio / peak
    example = {'audio': np.ascontiguousarray(audio, np.float32), 'emotion': np.int32(item['emotion'])}
    if self.pitch is not None:
      f0, voiced = self.pitch(whole, start / SAMPLE_RATE, speed, n)
      example |= {'f0': f0, 'voiced': voiced}
    return example

  def _is_silent(self, index, audio):
    """Whether there is no sound at all; warns the first time."""
    if len(audio) and np.abs(audio).max() > _SILENCE:
      return False
    if index not in self.silent:
      self.silent.add(index)
      logging.warning('left out: item %d is digital silence', index)
    return True

  def _read(self, index, rng):
    duration = getattr(self.source, 'duration', None)
    window = max(_LONG_SECONDS, self.crop_samples * (1 + self.speed) / SAMPLE_RATE + 0.1)
    if duration is not None and duration(index) > window:
      start = rng.uniform(0, duration(index) - window)
      return self.source.read(index, start, window)
    return self.source[index]


def make_iterator(source, config, *, batch_size, crop_samples, seed, num_workers=0, pitch=None,
                  process_index=0, process_count=1):
  """Endless, checkpointable iterator of batches.

  Args:
    source: a source.
    config: the `data` section of a configuration: how crops are varied.
    batch_size: clips a batch of this process.
    crop_samples: samples a clip.
    seed: of order, crops and gains.
    num_workers: reading processes; 0 reads in this one. An iterator's state fits only the same number.
    pitch: a function of (recording, first second, speed, samples) to the pitch of that crop, such as
      `pitch.crop_pitch`, or None.
    process_index: this process; its items are disjoint from every other's, each epoch.
    process_count: processes in all.

  Yields:
    `{'audio': float32 [batch_size, crop_samples], 'emotion': int32 [batch_size]}`, and with `pitch`
    `{'f0': …, 'voiced': float32 [batch_size, frames]}`.
  """
  if len(source) < process_count:
    raise UserError(f'{len(source)} clips cannot feed {process_count} processes')
  dataset = (grain.MapDataset.range(len(source))
             .seed(seed % 2**32)
             .shuffle()  # anew each epoch, repeated below
             .repeat(None)
             # Before the slice: otherwise every process draws the same crops and gains.
             .random_map(_Read(source, crop_samples, config, pitch))
             [process_index::process_count])
  # One read-ahead thread: sources are not asked from several threads at once.
  dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64))
  dataset = dataset.batch(batch_size)
  if num_workers:
    if not flags.FLAGS.is_parsed():  # worker processes read absl's flags
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
  return iter(dataset)


def data_changed(workdir, source):
  """Notes in `workdir`/data.json what a run trains on; says how it differs from the note there, or None."""
  digest = source.digest() if hasattr(source, 'digest') else ''
  path, note = pathlib.Path(workdir) / 'data.json', {'clips': len(source), 'sha256': digest}
  try:
    before = parse_json(path.read_bytes())
    clips, old = before['clips'], before['sha256']
  except (OSError, ValueError, KeyError, TypeError):  # a new run, or one of an older version
    clips, old = note['clips'], digest
  write_json(path, note)
  if (clips, old) == (note['clips'], digest):
    return None
  return (f'the training data is not what it was in this run before: {clips} clips then, {len(source)} now'
          + ('' if clips != len(source) else ', of other names, lengths or labels'))


def eval_crops(source, config, count, crop_samples, seed):
  """`count` crops of held-out recordings, as a training step sees them but not varied.

  Returns:
    `[count, crop_samples]`.
  """
  plain = config.copy_and_resolve_references()
  plain.update(gain_db=0.0, speed=0.0, equalise_db=0.0)
  return next(make_iterator(source, plain, batch_size=count, crop_samples=crop_samples, seed=seed))['audio']


def eval_clips(source, count, max_seconds):
  """Up to `count` items spread evenly over a source, the first `max_seconds` of each.

  Raises:
    UserError: no item can be read.
  """
  count, clips = min(count, len(source)), []
  for k in range(count):  # the first readable item of the k-th part
    for i in range(k * len(source) // count, (k + 1) * len(source) // count):
      item = source.read(i, 0.0, max_seconds) if hasattr(source, 'read') else source[i]
      if item is not None:
        clips.append(item | {'audio': item['audio'][:int(max_seconds * SAMPLE_RATE)]})
        break
  if count and not clips:
    raise UserError('none of the held-out items could be read; check the data')
  return clips
