"""Tokens for language models: every step has its inverse, whatever the shape."""

import subprocess
import sys

import numpy as np
import pytest

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.models import fsq
from affectcodec_jax.tokens import lm


def _shapes(count=30):
  """Random (generator, codes [frames, stages]), the smallest shapes among them."""
  for seed in range(count):
    rng = np.random.default_rng(seed)
    frames, stages = (int(rng.integers(0 if seed % 5 else 1, 40)), int(rng.integers(1, 9)))
    yield rng, rng.integers(0, 32768, (frames, stages), dtype=np.int32)


def test_split_is_that_of_the_quantiser_and_join_its_inverse():
  for _, codes in _shapes():
    parts = lm.split(codes)
    emotion, acoustic = fsq.split_index(codes, (2, 2, 2))
    np.testing.assert_array_equal(parts[:, ::2], emotion)
    np.testing.assert_array_equal(parts[:, 1::2], acoustic)
    assert parts.size == 0 or (parts[:, ::2].max() < 8 and parts[:, 1::2].max() < 4096)
    np.testing.assert_array_equal(lm.join(parts), codes)


def test_frames_are_flattened_one_after_the_other():
  np.testing.assert_array_equal(lm.flatten([[1, 2], [3, 4], [5, 6]]), [1, 2, 3, 4, 5, 6])
  for _, codes in _shapes():
    np.testing.assert_array_equal(lm.unflatten(lm.flatten(codes), codes.shape[1]), codes)
  with pytest.raises(UserError, match='not whole'):
    lm.unflatten(np.arange(7), 2)


def test_column_k_comes_k_frames_later():
  np.testing.assert_array_equal(lm.delay(np.array([[1, 2, 3], [4, 5, 6]]), fill=0),
                                [[1, 0, 0], [4, 2, 0], [0, 5, 3], [0, 0, 6]])
  for rng, codes in _shapes():
    delayed = lm.delay(codes, fill=-1)
    assert (delayed == -1).sum() == codes.shape[1] * (codes.shape[1] - 1)  # stages - 1 in each column
    np.testing.assert_array_equal(lm.undelay(delayed), codes)
    kept = int(rng.integers(len(codes) + 1))  # what a model had said before it was stopped
    np.testing.assert_array_equal(lm.undelay(delayed[:kept + codes.shape[1] - 1]), codes[:kept])
  with pytest.raises(UserError, match='no whole frame'):
    lm.undelay(np.zeros((1, 3)))


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('divided', [False, True])
def test_ids_lie_beside_the_special_ones_and_come_back(divided, shared):
  for _, codes in _shapes():
    stages = codes.shape[1]
    vocabulary = lm.codes_vocabulary(stages, divided, shared)
    values = lm.split(codes) if divided else codes
    ids = vocabulary.to_ids(values)
    assert ids.size == 0 or (ids.min() > vocabulary.eos and ids.max() < vocabulary.size)
    for column in range(ids.shape[1]):
      first, end = vocabulary.column_ids(column)
      assert ((first <= ids[:, column]) & (ids[:, column] < end)).all()
    np.testing.assert_array_equal(vocabulary.to_codes(ids), values)
    ranges = {vocabulary.column_ids(c) for c in range(ids.shape[1])}
    assert vocabulary.size == lm.SPECIAL + sum(b - a for a, b in ranges)  # no id is unused or in two ranges
    assert len(ranges) == ((2 if divided else 1) if shared else ids.shape[1])


def test_ids_of_another_column_or_special_ones_are_refused():
  vocabulary = lm.codes_vocabulary(2)
  assert (vocabulary.size, vocabulary.column_ids(2)) == (3 + 2 * 4104, (3 + 4104, 3 + 4112))
  with pytest.raises(UserError, match='outside'):
    vocabulary.to_ids([[8, 0, 0, 0]])
  with pytest.raises(UserError, match='special'):
    vocabulary.to_codes([[vocabulary.eos, 11, 4107, 4115]])
  with pytest.raises(UserError, match='columns'):
    vocabulary.to_ids([[1, 2]])


def test_sequences_begin_and_end_and_unfinished_ones_are_read():
  for rng, codes in _shapes():
    vocabulary = lm.codes_vocabulary(codes.shape[1])
    ids = vocabulary.to_ids(lm.split(codes))
    sequence, columns = lm.to_sequence(ids), ids.shape[1]
    assert (sequence[0], sequence[-1]) == (vocabulary.bos, vocabulary.eos)
    assert sequence.shape == (ids.size + 2,) and sequence.dtype == np.int32
    padded = np.pad(sequence, (0, 3))
    np.testing.assert_array_equal(lm.from_sequence(padded, columns), ids)
    cut = int(rng.integers(ids.size + 1))
    np.testing.assert_array_equal(lm.from_sequence(sequence[1:1 + cut], columns), ids[:cut // columns])


def test_batches_are_padded_and_masked():
  for rng, codes in _shapes():
    several = [codes, codes[:len(codes) // 2], codes[1:]]
    batch, mask = lm.pad(several, fill=-1)
    assert batch.shape == (3, *codes.shape) and mask.shape == (3, len(codes))
    assert (batch[~mask] == -1).all() and mask.sum() == sum(map(len, several))
    for a, b in zip(lm.unpad(batch, mask), several, strict=True):
      np.testing.assert_array_equal(a, b)
    length = int(rng.integers(1, 50))
    batch, mask = lm.pad(several, length=length)
    assert batch.shape[1] == mask.shape[1] == length
    for a, b in zip(lm.unpad(batch, mask), several, strict=True):
      np.testing.assert_array_equal(a, b[:length])


def test_neither_these_nor_reading_shards_needs_jax():
  code = 'import sys; from affectcodec_jax.tokens import lm, shards; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
