"""What a codec costs: parameters, memory, time, and what its codes are worth."""

import time

import jax
import numpy as np

from affectcodec_jax.common.constants import SAMPLE_RATE
from affectcodec_jax.evaluation.usage import usage
from affectcodec_jax.models.blocks import block_levels
from affectcodec_jax.tokens.afc import HEADER_BYTES

SECONDS = 10.0


def looped(clips, seconds=SECONDS):
  """The clips one after another, repeated or cut to `seconds`: `[samples]`."""
  return np.resize(np.concatenate(clips), int(seconds * SAMPLE_RATE)).astype(np.float32)


def real_time_factor(call, seconds, times=5):
  """Seconds of computing per second of audio: the median of several calls after a first one, and range."""
  call()
  taken = []
  for _ in range(times):
    start = time.perf_counter()
    call()
    taken.append((time.perf_counter() - start) / seconds)
  return {'median': float(np.median(taken)), 'low': min(taken), 'high': max(taken)}


def codec_facts(codec, signal, codes):
  """Facts of a `Pretrained` codec.

  Args:
    codec: it.
    signal: `[samples]` to time it on, with all threads there are.
    codes: of each file at the highest rate, list of `[frames, stages]`.

  Returns:
    `parameters` by part and in all, `parameter_bytes`, `working_bytes` that XLA reserves to encode and to
    decode `signal`, `encode` and `decode` real-time factors, `header_bytes` of a token file, `usage` (see
    `evaluation.usage`).
  """
  seconds = len(signal) / SAMPLE_RATE
  tokens = codec.encode(signal, SAMPLE_RATE)
  parts = {name: _count(tree) for name, tree in codec.params.items()}
  parts |= {f'{name} (frozen)': _count(tree) for name, tree in codec.frozen.items()}
  sizes = [leaf.nbytes for leaf in jax.tree.leaves((codec.params, codec.frozen))]
  return {
      'parameters': parts | {'all': sum(parts.values())}, 'parameter_bytes': sum(sizes),
      'working_bytes': codec.working_memory(seconds),
      'encode': real_time_factor(lambda: codec.encode(signal, SAMPLE_RATE), seconds),
      'decode': real_time_factor(lambda: codec.decode(tokens), seconds),
      'seconds': seconds, 'header_bytes': HEADER_BYTES, 'fingerprint': codec.fingerprint.hex(),
      'usage': usage([np.array(c) for c in codes], block_levels(codec.config.model)) if codes else None,
  }


def _count(tree):
  return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))
