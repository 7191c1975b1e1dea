"""The machine's peak, against which the others are shares."""

from benchmarks.measure import matmul_peak


def run(threads, rounds):
  """One row: operations per second of a large float32 matmul."""
  del threads
  yield {'operation': 'matmul 2048', 'gflops': round(matmul_peak(rounds) / 1e9, 1)}
