"""Parquet token shards to padded batches of a language model, by Hugging Face datasets.

  python -m examples.read_datasets TOKENS

TOKENS is a folder that `python -m affectcodec_jax tokenize --format parquet` made.
"""

import argparse
import sys

import numpy as np

from affectcodec_jax.common.errors import require_extra, run_command
from affectcodec_jax.tokens import lm
from affectcodec_jax.tokens import shards as token_shards


def batches(folder, vocabulary, batch_size, split=None, seed=0):
  """One epoch of batches: a sequence a clip, from bos to eos, one id after the other.

  Args:
    folder: of Parquet token shards.
    vocabulary: `lm.Vocabulary` of whole codes.
    batch_size: clips a batch; the last batch may hold fewer.
    split: only clips whose `split` is this.
    seed: of the order.

  Yields:
    ids `[batch, length]`, pad after the end, and a mask `[batch, length]`.

  Raises:
    UserError: no finished folder of Parquet shards, or datasets is not installed.
  """
  datasets = require_extra('datasets', extras='requirements-lm.txt')
  clips = datasets.load_dataset('parquet', data_files=token_shards.shard_paths(folder, 'parquet'),
                                split='train')  # what it calls all rows
  if split is not None:
    clips = clips.filter(lambda name: name == split, input_columns='split')
  for batch in clips.shuffle(seed=seed).iter(batch_size):
    ids = [vocabulary.to_ids(np.array(codes)[:, :len(vocabulary.sizes)]) for codes in batch['codes']]
    yield lm.pad([lm.to_sequence(clip) for clip in ids])


def show(folder):
  """Prints what a batch looks like."""
  ids, mask = next(batches(folder, lm.codes_vocabulary(stages=2, divided=False), batch_size=4))
  print(f'ids {ids.shape} {ids.dtype}, mask {mask.shape}, {mask.mean():.0%} of it clips')
  print(ids[0, :6])


if __name__ == '__main__':
  parser = argparse.ArgumentParser(prog='python -m examples.read_datasets')
  parser.add_argument('tokens', help='folder of python -m affectcodec_jax tokenize')
  args = parser.parse_args()
  sys.exit(run_command(lambda: show(args.tokens)))
