"""Token shards in a PyTorch DataLoader, and generated tokens to sound by the ONNX decoder. Without JAX.

  python -m examples.torch_dataset TOKENS
  python -m examples.torch_dataset TOKENS --decoder exported/decoder.onnx --out first.wav

TOKENS is a folder that `python -m affectcodec_jax tokenize` made, the decoder is of
`python -m affectcodec_jax export exported --format onnx`. Needs torch, and onnxruntime to decode.
"""

import argparse
import functools
import sys

import numpy as np
import torch

from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.errors import UserError, brief, require_extra, run_command
from affectcodec_jax.tokens import lm
from affectcodec_jax.tokens import shards as token_shards


class TokenDataset(torch.utils.data.Dataset):
  """Clips of a folder of ArrayRecord shards as ids in the delay pattern, int64 `[rows, columns]`.

  Args:
    folder: of token shards.
    vocabulary: `lm.Vocabulary` of split codes; the stages it has are taken.
    frames: longest part of a clip, from a random frame on; None is the whole clip.
    split: only clips whose `split` is this.
    seed: of the parts, outside of workers: those have seeds of their own, by their loader's.

  Raises:
    UserError: no finished folder of ArrayRecord shards, or no clip of that split.
  """

  def __init__(self, folder, vocabulary, frames=None, split=None, seed=0):
    self.vocabulary, self.frames, self.seed = vocabulary, frames, seed
    self._random = None
    self._paths, self._readers = token_shards.shard_paths(folder), {}
    # Chosen once: to leave the other splits out at every epoch would read them again.
    self._places = [(path, row) for path in self._paths for row in range(self._reader(path).num_records())]
    if split is not None:
      self._places = [place for place in self._places if self._clip(place)['split'] == split]
    if not self._places:
      raise UserError(f'{folder}: no clip of split {split}')

  def __len__(self):
    return len(self._places)

  def __getitem__(self, i):
    codes = self._clip(self._places[i])['codes'][:, :len(self.vocabulary.sizes) // 2]
    if self.frames is not None and len(codes) > self.frames:
      start = int(torch.randint(len(codes) - self.frames + 1, (), generator=self._generator()))
      codes = codes[start:start + self.frames]
    return torch.from_numpy(lm.delay(self.vocabulary.to_ids(lm.split(codes))).astype(np.int64))

  def __getstate__(self):
    return self.__dict__ | {'_readers': {}, '_random': None}  # each process opens its own

  def _generator(self):
    if self._random is None:
      worker = torch.utils.data.get_worker_info()
      self._random = torch.Generator().manual_seed(worker.seed if worker else self.seed)
    return self._random

  def _reader(self, path):
    from array_record.python.array_record_module import ArrayRecordReader
    if path not in self._readers:
      self._readers[path] = ArrayRecordReader(path)
    return self._readers[path]

  def _clip(self, place):
    path, row = place
    return token_shards.read_record(self._reader(path).read([row])[0])


def collate(clips, length=None):
  """Clips `[rows_i, columns]` to ids `[batch, length, columns]`, pad after the end, and their bool mask."""
  ids, mask = lm.pad([clip.numpy() for clip in clips], length=length)
  return torch.from_numpy(ids), torch.from_numpy(mask)


def loader(folder, vocabulary, batch_size, frames=None, split=None, workers=0, seed=0):
  """A `DataLoader` of (ids, mask) of `collate`: each pass is an epoch in an order of its own.

  Args:
    folder, vocabulary, frames, split: of `TokenDataset`. With `frames` every batch has one shape.
    batch_size: clips a batch; the last one may hold fewer.
    workers: processes that read; they are spawned, so call this below `if __name__ == '__main__':`.
    seed: of order and windows.
  """
  dataset = TokenDataset(folder, vocabulary, frames, split, seed)
  length = frames and frames + len(vocabulary.sizes) - 1
  return torch.utils.data.DataLoader(
      dataset, batch_size, shuffle=True, num_workers=workers,
      collate_fn=functools.partial(collate, length=length),
      multiprocessing_context='spawn' if workers else None, persistent_workers=workers > 0,
      generator=torch.Generator().manual_seed(seed))


def to_codes(ids, vocabulary):
  """Ids `[rows, columns]` of a model, in the delay pattern, to codes, int32 `[frames, stages]`."""
  return lm.join(vocabulary.to_codes(lm.undelay(np.asarray(ids)))).astype(np.int32)


def make_decoder(path):
  """A function of codes, integers `[frames, stages]`, to float32 `[frames * 320]` at 16 kHz and −24 dBFS.

  Any of the codec's lower rates will do: stages that are not there count as left out.

  Args:
    path: decoder.onnx of an export.

  Raises:
    UserError: no such file, or not such a decoder.
  """
  onnxruntime = require_extra('onnxruntime', extras='requirements-export.txt')
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # no warnings of initializers that no node reads
  try:
    session = onnxruntime.InferenceSession(str(path), options)
    stages = session.get_inputs()[0].shape[1]
  except Exception as e:  # onnxruntime's have no common class
    raise UserError(f'{path}: not a decoder.onnx of python -m affectcodec_jax export ({brief(e)})') from e

  def decode(codes):
    if codes.shape[1] > stages:
      raise UserError(f'codes of {codes.shape[1]} stages; this decoder has {stages}')
    whole = np.full((len(codes), stages), -1, np.int32)
    whole[:, :codes.shape[1]] = codes
    audio, = session.run(None, {'codes': whole})  # [frames, 320]
    return audio.reshape(len(codes) * HOP_LENGTH)

  return decode


def show(folder, decoder=None, out=None):
  """Prints what a batch looks like; with a decoder, writes its first clip as sound."""
  vocabulary = lm.codes_vocabulary(stages=2)
  ids, mask = next(iter(loader(folder, vocabulary, batch_size=4, workers=1)))
  shapes = f'ids {tuple(ids.shape)} {ids.dtype}, mask {tuple(mask.shape)}'
  print(f'{shapes}, {mask.float().mean():.0%} of it clips')
  if decoder:
    import soundfile
    first = lm.unpad(ids.numpy(), mask.numpy())[0]
    soundfile.write(out, make_decoder(decoder)(to_codes(first, vocabulary)).clip(-1, 1), 16000)
    print(out)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(prog='python -m examples.torch_dataset')
  parser.add_argument('tokens', help='folder of python -m affectcodec_jax tokenize')
  parser.add_argument('--decoder', help='decoder.onnx of python -m affectcodec_jax export')
  parser.add_argument('--out', default='first.wav', help='sound of the first clip (default first.wav)')
  args = parser.parse_args()
  sys.exit(run_command(lambda: show(args.tokens, args.decoder, args.out)))
