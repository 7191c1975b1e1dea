"""Token shards to padded batches of a language model, by grain: shuffled, endless, and resumable.

  python -m examples.read_grain TOKENS

TOKENS is a folder that `python -m affectcodec_jax tokenize` made.
"""

import argparse
import sys

import grain

from affectcodec_jax.common.errors import UserError, run_command
from affectcodec_jax.tokens import lm
from affectcodec_jax.tokens import shards as token_shards


class _Window(grain.transforms.RandomMap):
  """At most `rows` rows of a clip, from a random one on."""

  def __init__(self, rows):
    self.rows = rows

  def random_map(self, ids, rng):
    start = int(rng.integers(max(len(ids) - self.rows, 0) + 1))
    return ids[start:start + self.rows]


def batches(folder, vocabulary, batch_size, frames, split=None, seed=0):
  """Endless iterator of batches; its `get_state` and `set_state` go into a checkpoint.

  Args:
    folder: of token shards.
    vocabulary: `lm.Vocabulary` of split codes; the stages it has are taken.
    batch_size: clips a batch.
    frames: longest part of a clip.
    split: only clips whose `split` is this.
    seed: of order and windows.

  Raises:
    UserError: no finished folder of ArrayRecord shards, or no clip of that split.

  Yields:
    ids `[batch_size, rows, columns]` in the delay pattern, pad after the end, and a mask
    `[batch_size, rows]`, where rows = frames + columns - 1.
  """
  columns = len(vocabulary.sizes)

  def to_ids(clip):
    return vocabulary.to_ids(lm.split(clip['codes'][:, :columns // 2]))

  records = grain.sources.ArrayRecordDataSource(token_shards.shard_paths(folder))

  def read(i):
    return token_shards.read_record(records[i])

  # Chosen once: a filter would read and drop the other splits again in every epoch.
  chosen = [i for i in range(len(records)) if split is None or read(i)['split'] == split]
  if not chosen:
    raise UserError(f'{folder}: no clip of split {split}')
  dataset = grain.MapDataset.source(chosen).seed(seed).shuffle().repeat(None).map(read).map(to_ids)
  dataset = dataset.random_map(_Window(frames)).map(lm.delay).to_iter_dataset()
  return iter(dataset.batch(batch_size, batch_fn=lambda clips: lm.pad(clips, length=frames + columns - 1)))


def show(folder):
  """Prints what a batch looks like."""
  ids, mask = next(batches(folder, lm.codes_vocabulary(stages=2), batch_size=4, frames=100))
  print(f'ids {ids.shape} {ids.dtype}, mask {mask.shape}, {mask.mean():.0%} of it clips')
  print(ids[0, :6])


if __name__ == '__main__':
  parser = argparse.ArgumentParser(prog='python -m examples.read_grain')
  parser.add_argument('tokens', help='folder of python -m affectcodec_jax tokenize')
  args = parser.parse_args()
  sys.exit(run_command(lambda: show(args.tokens)))
