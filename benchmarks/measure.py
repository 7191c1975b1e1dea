"""What every benchmark measures with: calls in turn, ratios with their range, operations, memory."""

import ctypes
import importlib
import os
import statistics
import time

OURS = 'affectcodec_jax'


def run_alone(name, threads, rounds):
  """Rows of a benchmark, for a fresh process to call: it gets its cores before any library counts them."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
  os.environ['OMP_NUM_THREADS'] = str(threads)
  return list(importlib.import_module(f'benchmarks.{name}').run(threads, rounds))


def in_turn(calls, rounds):
  """Seconds of each call by name: a round to warm up, then `rounds` in turn; drift hits all alike."""
  for call in calls.values():
    call()
  seconds = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def rows(what, seconds, peer=None, **facts):
  """A row for each system; affectcodec_jax's also gets the ratio of the peer's seconds to its own.

  Args:
    what: the operation.
    seconds: of `in_turn`.
    peer: name of the peer, where there is one.
    **facts: dict by name of system, or one value for all, to put into the rows.
  """
  for name, values in seconds.items():
    row = {'operation': what, 'system': name, 'seconds': round(statistics.median(values), 5),
           'range': [round(min(values), 5), round(max(values), 5)]}
    if name == OURS and peer in seconds:
      ratios = [b / a for a, b in zip(values, seconds[peer])]
      row[f'{peer} / ours'] = round(statistics.median(ratios), 2)
      row['ratio_range'] = [round(min(ratios), 2), round(max(ratios), 2)]
    row |= {k: v[name] if isinstance(v, dict) else v for k, v in facts.items()
            if not isinstance(v, dict) or name in v}
    yield row


def share_of_peak(flops, seconds, peak):
  """Share of the measured peak `peak` (operations per second) that each system reaches, by name."""
  return {name: round(flops / statistics.median(values) / peak, 2) for name, values in seconds.items()}


def matmul_peak(rounds=5):
  """Operations per second of a float32 matmul of 2048 x 2048, the better of JAX's and PyTorch's best."""
  import jax
  import jax.numpy as jnp
  n = 2048
  x = jnp.ones((n, n))
  product = jax.jit(jnp.matmul)
  calls = {'jax': lambda: product(x, x).block_until_ready()}
  try:
    import torch
    y = torch.ones(n, n)
    calls['torch'] = lambda: y @ y
  except ImportError:
    pass
  return 2 * n ** 3 / min(min(values) for values in in_turn(calls, rounds).values())


def peak_memory(call):
  """Largest resident memory in MiB while `call` runs, and what was resident before it (Linux)."""
  ctypes.CDLL('libc.so.6').malloc_trim(0)
  with open('/proc/self/clear_refs', 'w') as f:
    f.write('5')  # forget the peak so far
  before = _status('VmRSS')
  call()
  return _status('VmHWM'), before


def _status(field):
  with open('/proc/self/status') as f:
    return next(int(line.split()[1]) / 1024 for line in f if line.startswith(field))
