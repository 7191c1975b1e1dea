"""Which codes a quantiser uses and how many bits they are worth.

Entropies are of codes counted over the frames of many files. Counting flatters an entropy coder: N frames
show too few codes. The Miller-Madow correction, (codes seen - 1) / (2 N) nats, makes up for the first
order of that; ideal rates are computed with it, and never above the nominal bits.
"""

import math

import numpy as np

from affectcodec_jax.common.constants import FRAME_RATE
from affectcodec_jax.models.blocks import block_digits, split_blocks


def entropy(counts, corrected=False):
  """Entropy in bits of counts `[n]`, as counted or with the Miller-Madow correction."""
  counts = np.asarray(counts, np.float64)
  counts = counts[counts > 0]
  p = counts / counts.sum()
  bits = -(p * np.log2(p)).sum()
  if corrected:
    bits += (len(counts) - 1) / (2 * counts.sum() * math.log(2))
  return float(max(bits, 0.0))


def conditional_entropy(sequences, size, corrected=False):
  """Entropy in bits of a code given the one before it: H(pair) - H(first of the pair).

  Args:
    sequences: codes in [0, size) of each file, list of `[frames]`; none goes on in the next.
    size: possible codes.
    corrected: both with the Miller-Madow correction.
  """
  pairs = sum(np.bincount(s[:-1] * size + s[1:], minlength=size * size) for s in sequences)
  first = pairs.reshape(size, size).sum(axis=1)
  return max(entropy(pairs, corrected) - entropy(first, corrected), 0.0)


def block_usage(sequences, digits, levels):
  """How one stage of one block is used.

  Args:
    sequences: its codes in each file, list of `[frames]`.
    digits: of all frames, `[N, f]`.
    levels: f numbers of levels.
  """
  size = math.prod(levels)
  counts = np.bincount(np.concatenate(sequences), minlength=size)
  nominal = math.log2(size)
  return {
      'used': int((counts > 0).sum()), 'possible': size, 'nominal_bits': nominal,
      'bits': entropy(counts), 'corrected_bits': min(entropy(counts, True), nominal),
      'fraction': entropy(counts) / nominal,
      'dimension_bits': [entropy(np.bincount(digits[:, i], minlength=n)) for i, n in enumerate(levels)],
  }


def usage(codes, levels):
  """Usage of every stage and block, and bits a second.

  Args:
    codes: composite indices of each file, list of `[frames, K]`.
    levels: {block: FSQ levels}.

  Returns:
    {'frames', 'stages': a list of {block: `block_usage`}, the block 'emotion' with 'conditional_bits'
    given the previous frame's code; 'bits_per_second': {'nominal', 'ideal': codes of each stage and
    block coded by themselves, 'ideal_conditional': emotion codes given those of the frame before}}.
  """
  parts = [split_blocks(c, levels) for c in codes]
  digits = block_digits(np.concatenate(codes), levels)
  stages, rates = [], {'nominal': 0.0, 'ideal': 0.0, 'ideal_conditional': 0.0}
  for k in range(codes[0].shape[1]):
    stages.append({})
    for block, n in levels.items():
      sequences = [p[block][:, k] for p in parts]
      result = block_usage(sequences, digits[block][:, k], n)
      best = result['corrected_bits']
      if block == 'emotion':
        size = math.prod(n)
        result['conditional_bits'] = conditional_entropy(sequences, size)
        best = min(best, conditional_entropy(sequences, size, corrected=True))
        result['corrected_conditional_bits'] = best
      stages[-1][block] = result
      for name, bits in (('nominal', result['nominal_bits']), ('ideal', result['corrected_bits']),
                         ('ideal_conditional', best)):
        rates[name] += bits * FRAME_RATE
  return {'frames': sum(map(len, codes)), 'stages': stages, 'bits_per_second': rates}
