"""Attention pooling of a recording in pieces: puts together what `AttentionPool.part` gives of each."""

import math

import numpy as np


def join_parts(parts):
  """The (highest score, sum of weights, weighted sum `[D]`) of several pieces together, in float64."""
  highest = max(top for top, _, _ in parts)
  scale = [math.exp(top - highest) for top, _, _ in parts]
  total = sum(s * float(weight) for s, (_, weight, _) in zip(scale, parts))
  return highest, total, sum(s * np.asarray(v, np.float64) for s, (_, _, v) in zip(scale, parts))


def pool_parts(parts):
  """The pooled vector `[D]` float32 of a recording, from such a triple of each of its pieces."""
  _, total, weighted_sum = join_parts(parts)
  return (weighted_sum / total).astype(np.float32)
