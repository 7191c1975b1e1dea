"""What a trained codec says of files: its codes by block, with log-mels and labels beside them."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from affectcodec_jax.audio import at_codec_level, pad_to_frames
from affectcodec_jax.common import progress
from affectcodec_jax.common.constants import HOP_LENGTH
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.evenly import evenly
from affectcodec_jax.data.folder import FolderSource
from affectcodec_jax.models.blocks import block_levels
from affectcodec_jax.spectral import log_mel

# Window, hop, bands: 60 ms around each codec frame of 20 ms. A window must be a multiple of the hop.
MEL = (960, HOP_LENGTH, 80)


class Clip(NamedTuple):
  """One file.

  Attributes:
    codes: composite indices, `[frames, K]` int32.
    mel: log10 mel magnitudes of the original at the codec's level, `[frames, 80]`, or None.
    emotion: index in `EMOTIONS`, -1 where unknown.
    speaker: who speaks; the file's own name where that is not known.
    corpus: where it comes from, '' where unknown.
    name: the file.
  """

  codes: np.ndarray
  mel: np.ndarray | None
  emotion: int
  speaker: str
  corpus: str
  name: str


def read_items(data, split, limit=0, labelled=False):
  """Yields the readable items of a split, at most `limit`, evenly spread, with a progress bar.

  With `labelled` only those of known emotion.

  Raises:
    UserError: no such split, or nothing in it could be read.
  """
  source = FolderSource(data, split)
  chosen = [i for i in range(len(source)) if not labelled or source.emotion(i) >= 0]
  if not chosen:
    raise UserError(f'{data}: no file of split {split} has a known emotion')
  found = False
  for i in progress.bar(evenly(chosen, limit), desc=str(split), unit='file', smoothing=0):
    item = source[i]
    if item is not None:
      found = True
      yield item
  if not found:
    raise UserError(f'{data}: no file of split {split} could be read')


def encode_clips(codec, data, split, limit=0, with_mel=False):
  """Encodes the files of a split at the highest rate: a list of `Clip`."""
  return [encode_clip(codec, item, with_mel) for item in read_items(data, split, limit)]


def encode_clip(codec, item, with_mel=False):
  """Encodes an item of `FolderSource` at the highest rate."""
  return Clip(np.asarray(codec.encode(item['audio'], codec.sample_rate).codes),
              frame_mels(item['audio']) if with_mel else None, item['emotion'],
              item['speaker'] or item['name'], item['corpus'], item['name'])


def padded_to_multiple(audio, multiple=50):
  """`[samples]` at the codec's level, zeros up to a multiple of so many frames, and the mask `[frames]`.

  There are few such lengths, so there is little to compile.
  """
  return pad_to_frames(at_codec_level(audio), -(-len(audio) // (multiple * HOP_LENGTH)) * multiple)


_log_mel = jax.jit(functools.partial(log_mel, window=MEL[0], hop=MEL[1], num_mels=MEL[2]))


def frame_mels(audio):
  """Log10 mel magnitudes of `[samples]` at the codec's frames, `[frames, 80]` float32."""
  padded, mask = padded_to_multiple(audio)
  return np.asarray(_log_mel(padded))[mask]


def emotion_blocks(model, path):
  """`block_levels` of a model that has emotion digits.

  Raises:
    UserError: it has none.
  """
  levels = block_levels(model)
  if 'emotion' not in levels:
    raise UserError(f"{path}: the codes of quantiser '{model.quantizer}' have no emotion digits; give a "
                    'run of bd_rfsq or full_rfsq')
  return levels
