"""Composite indices by block: the emotion and the acoustic part, their codes and digits."""

import math

import numpy as np

from affectcodec_jax.models import fsq
from affectcodec_jax.models.codec import bits_per_stage


def block_levels(model):
  """{block: its FSQ levels} in the order of the composite index; RVQ is one block of one number.

  Of a quantiser with full projections 'emotion' names the digits at the same places.
  """
  if model.quantizer == 'rvq':
    return {'code': (2 ** bits_per_stage(model),)}
  return {'emotion': tuple(model.emotion_levels), 'acoustic': tuple(model.acoustic_levels)}


def split_blocks(codes, levels):
  """Composite indices `[...]` to those of each block, {block: `[...]`}."""
  parts = {}
  for block, n in levels.items():
    codes, parts[block] = np.divmod(codes, math.prod(n))
  return parts


def block_digits(codes, levels):
  """Composite indices `[...]` to the digits of each block, {block: `[..., f]`}."""
  return {block: fsq.index_to_digits(part, levels[block])
          for block, part in split_blocks(codes, levels).items()}
