"""Tokens for language models: plain functions of NumPy arrays, without JAX and without a model.

Codes are `[frames, stages]`, 50 frames a second, each code 15 bits. On the way to a model

  codes    [frames, stages]                   values 0..32767
  split    [frames, 2 * stages]               each code as emotion (0..7) and acoustics (0..4095); optional
  to_ids   [frames, columns]                  ids of one vocabulary, beside pad, bos and eos
  then     flatten  [frames * columns]        one id after the other, or
           delay    [frames + columns - 1, columns]   all columns at once, column k later by k frames
  pad      [batch, length, ...]               with a mask

and every step has its inverse: `join`, `to_codes`, `unflatten`, `undelay`, `unpad`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import itertools
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from affectcodec_jax.common.errors import UserError

EMOTION_SIZE, ACOUSTIC_SIZE = 8, 4096  # of the standard model: the 3 low bits and the 12 others
SPECIAL = 3  # pad, bos, eos


def split(codes: npt.ArrayLike, emotion_size: int = EMOTION_SIZE) -> np.ndarray:
  """Codes `[..., stages]` to `[..., 2 * stages]`: emotion, acoustics, emotion, acoustics, …

  Args:
    codes: integers.
    emotion_size: values of the emotion part, 8 for three binary dimensions.
  """
  codes = np.asarray(codes)
  parts = np.stack([codes % emotion_size, codes // emotion_size], axis=-1)  # [..., stages, 2]
  return parts.reshape(*codes.shape[:-1], 2 * codes.shape[-1])


def join(parts: npt.ArrayLike, emotion_size: int = EMOTION_SIZE) -> np.ndarray:
  """Inverse of `split`: `[..., 2 * stages]` to `[..., stages]`."""
  parts = np.asarray(parts)
  return parts[..., ::2] + emotion_size * parts[..., 1::2]


@dataclass(frozen=True)
class Vocabulary:
  """One range of ids for everything a model reads: pad 0, bos 1, eos 2, then the columns' values.

  Attributes:
    sizes: how many values each column has: `(32768,) * stages` of whole codes, `(8, 4096) * stages` of
      split ones.
    shared: columns of one size use the same ids. Otherwise each column has its own, so an id alone
      says which column it is of.
  """

  sizes: tuple[int, ...]
  shared: bool = False

  pad: ClassVar[int] = 0
  bos: ClassVar[int] = 1
  eos: ClassVar[int] = 2

  @property
  def offsets(self) -> np.ndarray:
    """Id of value 0 in each column, int64 `[columns]`."""
    if self.shared:
      kinds = list(dict.fromkeys(self.sizes))
      starts = dict(zip(kinds, itertools.accumulate(kinds, initial=SPECIAL)))
      return np.array([starts[size] for size in self.sizes])
    return SPECIAL + np.cumsum([0, *self.sizes[:-1]])

  @property
  def size(self) -> int:
    """Ids in all, special ones too: the width of an embedding table."""
    return SPECIAL + sum(dict.fromkeys(self.sizes) if self.shared else self.sizes)

  def column_ids(self, column: int) -> tuple[int, int]:
    """(first id, one past the last) of a column: what a model may say in its place."""
    start = int(self.offsets[column])
    return start, start + self.sizes[column]

  def to_ids(self, values: npt.ArrayLike) -> np.ndarray:
    """Values `[..., columns]` to ids `[..., columns]`, int32.

    Raises:
      UserError: other columns than `sizes`, or a value outside its column.
    """
    values = self._columns(values)
    if values.size and ((values < 0) | (values >= np.asarray(self.sizes))).any():
      raise UserError(f'values outside the columns of this vocabulary, whose sizes are {self.sizes}; '
                      'split the codes, or not, as the vocabulary was made for')
    return (values + self.offsets).astype(np.int32)

  def to_codes(self, ids: npt.ArrayLike) -> np.ndarray:
    """Inverse of `to_ids`: `[..., columns]`, int32.

    Raises:
      UserError: other columns than `sizes`, or an id that is not of its column, such as a special one.
    """
    values = self._columns(ids) - self.offsets
    if values.size and ((values < 0) | (values >= np.asarray(self.sizes))).any():
      raise UserError('ids that are not of their column; take special ones off, and let a model choose '
                      'among column_ids(column) alone')
    return values.astype(np.int32)

  def _columns(self, values: npt.ArrayLike) -> np.ndarray:
    values = np.asarray(values)
    if not values.ndim or values.shape[-1] != len(self.sizes):
      raise UserError(f'expected [..., {len(self.sizes)} columns], got shape {list(values.shape)}')
    return values


def codes_vocabulary(stages: int, divided: bool = True, shared: bool = False,
                     emotion_size: int = EMOTION_SIZE, acoustic_size: int = ACOUSTIC_SIZE) -> Vocabulary:
  """`Vocabulary` for so many stages of codes, `divided` by `split` or whole."""
  columns = (emotion_size, acoustic_size) if divided else (emotion_size * acoustic_size,)
  return Vocabulary(columns * stages, shared)


def flatten(ids: npt.ArrayLike) -> np.ndarray:
  """`[frames, columns]` to `[frames * columns]`, frame after frame."""
  return np.asarray(ids).reshape(-1)


def unflatten(ids: npt.ArrayLike, columns: int) -> np.ndarray:
  """Inverse of `flatten`: `[frames * columns]` to `[frames, columns]`.

  Raises:
    UserError: the last frame is not whole.
  """
  ids = np.asarray(ids)
  if ids.ndim != 1 or ids.size % columns:
    raise UserError(f'expected [frames * {columns}] ids, got shape {list(ids.shape)}; drop the last frame '
                    'where it is not whole')
  return ids.reshape(-1, columns)


def delay(ids: npt.ArrayLike, fill: int = Vocabulary.pad) -> np.ndarray:
  """Shifts column k by k frames: `[frames, columns]` to `[frames + columns - 1, columns]`.

  A model that says one row a step then knows columns 0 to k - 1 of a frame when it says column k (the
  pattern of MusicGen, arXiv 2306.05284). `fill` stands where there is nothing.
  """
  ids = np.asarray(ids)
  frames, columns = ids.shape
  out = np.full((frames + columns - 1, columns), fill, ids.dtype)
  for k in range(columns):
    out[k:k + frames, k] = ids[:, k]
  return out


def undelay(ids: npt.ArrayLike) -> np.ndarray:
  """Inverse of `delay`: `[rows, columns]` to `[rows - columns + 1, columns]`.

  Of the unfinished output of a model it keeps the frames whose columns are all there.

  Raises:
    UserError: fewer rows than columns, so no frame is whole.
  """
  ids = np.asarray(ids)
  rows, columns = ids.shape
  frames = rows - columns + 1
  if frames < 0:
    raise UserError(f'{rows} rows of {columns} delayed columns hold no whole frame')
  return np.stack([ids[k:k + frames, k] for k in range(columns)], axis=1)


def to_sequence(ids: npt.ArrayLike) -> np.ndarray:
  """One sequence for a plain language model: ids `[frames, columns]` to `[frames * columns + 2]`.

  It begins with bos and ends with eos.
  """
  ids = flatten(ids)
  return np.concatenate([[Vocabulary.bos], ids, [Vocabulary.eos]]).astype(ids.dtype)


def from_sequence(ids: npt.ArrayLike, columns: int) -> np.ndarray:
  """Inverse of `to_sequence`, of a model's output too: `[length]` to `[frames, columns]`.

  Takes a leading bos off, ends at the first eos or pad, and drops a last frame that is not whole.
  """
  ids = np.asarray(ids)
  ids = ids[1:] if len(ids) and ids[0] == Vocabulary.bos else ids
  ends = np.flatnonzero((ids == Vocabulary.eos) | (ids == Vocabulary.pad))
  ids = ids[:ends[0]] if len(ends) else ids
  return unflatten(ids[:len(ids) // columns * columns], columns)


def pad(sequences: Sequence[npt.ArrayLike], fill: int = Vocabulary.pad,
        length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """A batch of sequences `[length_i, ...]` of one trailing shape.

  Args:
    sequences: at least one array.
    fill: what stands after the end.
    length: of the batch; None is that of the longest. Longer sequences are cut.

  Returns:
    `[batch, length, ...]` and a bool mask `[batch, length]`, True where a sequence is.
  """
  rows = [np.asarray(s)[:length] for s in sequences]
  longest = max(map(len, rows)) if length is None else length
  batch = np.full((len(rows), longest, *rows[0].shape[1:]), fill, rows[0].dtype)
  mask = np.zeros((len(rows), longest), bool)
  for i, row in enumerate(rows):
    batch[i, :len(row)], mask[i, :len(row)] = row, True
  return batch, mask


def unpad(batch: Iterable[np.ndarray], mask: Iterable[np.ndarray]) -> list[np.ndarray]:
  """Inverse of `pad`: the list of `[length_i, ...]` where nothing was cut."""
  return [row[m] for row, m in zip(batch, mask)]
