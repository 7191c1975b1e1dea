"""Work over processes of one thread each: results in order, nobody left behind."""

import concurrent.futures.process
import contextlib
import multiprocessing
import os
import signal
import threading
import time

from affectcodec_jax.common import progress
from affectcodec_jax.common.errors import UserError

Died = concurrent.futures.process.BrokenProcessPool  # a process of the pool ended: killed, or out of memory


@contextlib.contextmanager
def pool(jobs, start=None, settings=(), on_cpu=False):
  """An executor of `jobs` processes, each of which first calls `start(*settings)`.

  With `on_cpu` they leave accelerators alone, which one process at a time can use.

  One thread each: they share the cores without waiting for one another, and what a process computes does
  not depend on how many there are. They leave with this process, however that ends; an exception in the
  block, Ctrl-C too, drops what is not begun.
  """
  threads = {'OMP_NUM_THREADS': '1', 'TF_CPP_MIN_LOG_LEVEL': '3',
             'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')
             + ' --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'}
  threads |= {'JAX_PLATFORMS': 'cpu'} if on_cpu else {}
  before = {k: os.environ.get(k) for k in threads}
  os.environ.update(threads)  # inherited by the processes, which start with the first task
  try:
    with concurrent.futures.ProcessPoolExecutor(
        jobs, multiprocessing.get_context('spawn'), _start, (os.getpid(), start, settings)) as executor:
      try:
        yield executor
      except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
  finally:
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def cores():
  """Cores that this process may use."""
  linux = hasattr(os, 'sched_getaffinity')
  return len(os.sched_getaffinity(0)) if linux else os.cpu_count()


def count(wanted, backend, option):
  """Processes to start: those wanted or, for None, one a core and on an accelerator a single one.

  Args:
    wanted: by the user, or None.
    backend: kind of device, as JAX names it.
    option: of the command, for the error.

  Raises:
    UserError: several are wanted on an accelerator.
  """
  if backend != 'cpu' and (wanted or 1) > 1:
    raise UserError(f'{option} {wanted}: a {backend} is used by one process; leave it out')
  return wanted or (cores() if backend == 'cpu' else 1)


def in_order(executor, work, items, ahead):
  """Yields (item, `work(item)`) in the order of `items`, of which at most `ahead` wait.

  Raises:
    Died: a process ended before its work was done.
  """
  waiting = []
  for item in items:
    waiting.append((item, executor.submit(work, item)))
    if len(waiting) > ahead:
      done, result = waiting.pop(0)
      yield done, result.result()
  for done, result in waiting:
    yield done, result.result()


def _start(parent, start, settings):
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
  threading.Thread(target=leave_with, args=(parent,), daemon=True).start()
  progress.log_to_stderr()
  progress.set_verbosity(quiet=True)  # the parent has the bar
  if start:
    start(*settings)


def leave_with(parent):
  """Ends this process when its parent is gone, however that ended: nobody would wait for it."""
  while os.getppid() == parent:
    time.sleep(2)
  os._exit(1)
