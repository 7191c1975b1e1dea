"""Orbax checkpoints that are checked when they are read.

One checkpoint holds four items: `state` (everything but the average), `ema` (what encoding needs),
`data` (the input iterator) and `meta` (checksums, because the array files carry none). A checkpoint
that is incomplete or fails its checksums is set aside, and the one before it is used; where none is left,
nothing is touched.
"""

import logging
import shutil

import grain
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from affectcodec_jax.common import buckets
from affectcodec_jax.common.errors import UserError, brief
from affectcodec_jax.inference import restore


class _CheckpointManager(ocp.CheckpointManager):
  """Counts the steps at which it asks whether to stop, itself in `save` too, from the first one.

  The processes agree to stop at the first count beyond what any of them has named, which is 1 until they
  ask: so a TERM while the first step is compiled is not missed by a run that goes on at a later step.
  """

  _first = None

  def reached_preemption(self, step):
    self._first = step if self._first is None else self._first
    return super().reached_preemption(step - self._first + 1)


def make_manager(workdir, keep=3):
  """A manager of `workdir`/checkpoints that writes in the background and keeps the last `keep`."""
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
  with buckets.as_user_error(workdir):
    path = buckets.folder(workdir) / 'checkpoints'
    return _CheckpointManager(path, options=options, item_names=restore.ITEMS)


def save(manager, state, iterator):
  """Starts saving a `TrainState` at its own step; `finish` waits for the end.

  Of host arrays process 0 writes all, of arrays over several processes' devices each its own shards. The
  arrays may be donated afterwards.

  Raises:
    UserError: no room, or the one before could not be written.
  """
  ema, rest = state.ema, state.replace(ema=None)
  if jax.process_index() == 0 and not buckets.is_address(manager.directory):
    # Before anything is written: what Orbax does on a full disk takes minutes and hundreds of tracebacks.
    needed = sum(x.nbytes for x in jax.tree.leaves(state)) + (1 << 20)
    free = shutil.disk_usage(manager.directory).free
    if free < needed:
      raise _not_written(manager, f'it may take {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free')
  sums = {'state': restore.checksums(rest), 'ema': restore.checksums(ema)}
  try:
    with buckets.as_user_error(manager.directory):
      manager.save(int(state.step), args=ocp.args.Composite(
          state=ocp.args.StandardSave(rest),
          ema=ocp.args.StandardSave(ema),
          data=grain.checkpoint.CheckpointSave(iterator),
          meta=ocp.args.JsonSave({'sums': sums})))
  except (ValueError, OSError, RuntimeError) as e:
    raise _not_written(manager, e) from e


def finish(manager):
  """Waits until what `save` began is on the disk.

  Raises:
    UserError: it could not be written.
  """
  try:
    with buckets.as_user_error(manager.directory):
      manager.wait_until_finished()
  except (ValueError, OSError, RuntimeError) as e:
    raise _not_written(manager, e) from e


def _not_written(manager, reason):
  return UserError(f'{manager.directory}: the checkpoint could not be written ({brief(reason, 300)}); make '
                   'room, the same command then continues from the last one that is whole')


def restore_latest(manager, fresh, iterator):
  """State of the newest intact checkpoint, and `iterator` set to where it stood; None without one.

  Args:
    manager: from `make_manager`.
    fresh: a state of the same shapes (arrays or shape structs), with shardings to be read into those.
    iterator: the data iterator, changed in place.

  Raises:
    UserError: there are checkpoints, but not one that can be continued from.
  """
  damaged = []
  for step in sorted(manager.all_steps(), reverse=True):
    rest = restore.read_item(manager, step, 'state', fresh.replace(ema=None))
    ema = restore.read_item(manager, step, 'ema', fresh.ema)
    intact = rest is not None and ema is not None and _restore_iterator(manager, step, iterator)
    if not restore.all_processes_agree(intact):
      damaged.append(step)
      continue
    for newer in damaged:  # only now: perhaps none of them fitted, and the fault is elsewhere
      _set_aside(manager, newer)
    return rest.replace(ema=ema)
  if damaged:
    raise UserError(f'{manager.directory}: no checkpoint there fits this run (see above); go back to the '
                    'settings and the version it was made with, or give another --workdir')
  return None


def _restore_iterator(manager, step, iterator):
  """Sets `iterator` to where it stood; False (with a warning) if it does not fit its state."""
  before = iterator.get_state()
  try:
    # Not by the manager, whose processes wait for each other: this file is of one process alone.
    grain.checkpoint.CheckpointHandler().restore(manager.directory / str(step) / 'data', iterator)
    iterator.get_state()
  except Exception as e:  # a missing file, half a file, a state of another kind of iterator
    logging.warning('checkpoint %d: its data position is damaged, or was made with another '
                    'data.num_workers or number of processes (%s: %s)', step, type(e).__name__, e)
    iterator.set_state(before)
    return False
  return True


def restore_state(workdir, fresh):
  """The newest intact `TrainState` of `workdir`, as host arrays.

  Raises:
    UserError: there is none.
  """
  items, _ = restore.restore_newest(workdir, state=fresh.replace(ema=None), ema=fresh.ema)
  return items['state'].replace(ema=items['ema'])


def _set_aside(manager, step):
  """Moves a damaged checkpoint out of the way, so that its step can be saved again."""
  if jax.process_index() == 0:
    root = buckets.folder(manager.directory)
    damaged = root.parent / 'damaged_checkpoints'
    damaged.mkdir(exist_ok=True)
    target = damaged / str(step)
    suffix = 1
    while target.exists():
      suffix += 1
      target = damaged / f'{step}-{suffix}'
    buckets.move(root / str(step), target)
    logging.warning('moved it to %s', target)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'checkpoint {step} is set aside')
  manager.reload()
