"""Speed beside named peers: `python -m benchmarks [NAME ...] [--threads 1 2] [--rounds 5] [--out FILE]`.

Each benchmark runs in a process of its own, held to so many cores. Within it, ours and the peer's
take turns, round by round; a ratio is the median over rounds of peer's seconds / our seconds, with its
range. A row of JSON for each system, on the screen and in FILE. A peer whose package is not installed
is left out with a word.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import sys

from benchmarks.measure import run_alone

NAMES = ('matmul', 'quantizer', 'codec', 'step', 'train_step', 'lite_step', 'memory', 'pipeline', 'corpus',
         'startup', 'streaming')


def main(argv=None):
  """Entry point; returns the exit status."""
  parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(NAMES)}; none is all')
  parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--out', help='file to append rows to')
  args = parser.parse_args(argv)
  unknown = set(args.names) - set(NAMES)
  if unknown:
    parser.error(f'no benchmark {", ".join(sorted(unknown))}; there are {", ".join(NAMES)}')
  cores = len(os.sched_getaffinity(0))
  if max(args.threads) > cores or min(args.threads) < 1 or args.rounds < 1:
    parser.error(f'--threads must be 1 to {cores} here, --rounds 1 or more')
  for name in args.names or NAMES:
    for threads in args.threads:
      with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        rows = pool.submit(run_alone, name, threads, args.rounds).result()
      for row in rows:
        row = {'benchmark': name, 'threads': threads, **row, 'machine': _machine()}
        print(json.dumps({k: v for k, v in row.items() if k != 'machine'}), flush=True)
        if args.out:
          with open(args.out, 'a') as f:
            f.write(json.dumps(row) + '\n')
  return 0


def _machine():
  """Processor, cores and Python, in a few words."""
  try:
    with open('/proc/cpuinfo') as f:
      names = [line.split(':')[1].strip() for line in f if line.startswith('model name')]
  except OSError:
    names = []
  processor = names[0] if names else platform.machine()
  return f'{processor}, {os.cpu_count()} cores, Python {platform.python_version()}'


if __name__ == '__main__':
  sys.exit(main())
