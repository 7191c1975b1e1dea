"""Orbax checkpoints that are checked when they are read.

One checkpoint holds four items: `state` (everything but the average), `ema` (what encoding needs),
`data` (the input iterator) and `meta` (checksums, because the array files carry none). A checkpoint
that is incomplete or fails its checksums is set aside, and the one before it is used; where none is left,
nothing is touched.
"""

import logging
import pathlib

import grain
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.inference.restore import ITEMS, checksums, make_reader, nothing_usable, read_item


def make_manager(workdir, keep=3):
  """A manager of `workdir`/checkpoints that writes in the background and keeps the last `keep`."""
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  return ocp.CheckpointManager(path, options=options, item_names=ITEMS)


def save(manager, state, iterator):
  """Starts saving an unreplicated `TrainState` of host arrays at its own step."""
  ema, rest = state.ema, state.replace(ema=None)
  manager.save(int(state.step), args=ocp.args.Composite(
      state=ocp.args.StandardSave(rest),
      ema=ocp.args.StandardSave(ema),
      data=grain.checkpoint.CheckpointSave(iterator),
      meta=ocp.args.JsonSave({'state': checksums(rest), 'ema': checksums(ema)})))


def restore_latest(manager, fresh, iterator):
  """State of the newest sound checkpoint, and `iterator` set to where it stood; None without one.

  Args:
    manager: from `make_manager`.
    fresh: a state of the same shapes (arrays or shape structs).
    iterator: the data iterator, changed in place.

  Raises:
    UserError: there are checkpoints, but not one that can be continued from.
  """
  damaged = []
  for step in sorted(manager.all_steps(), reverse=True):
    rest = read_item(manager, step, 'state', fresh.replace(ema=None))
    ema = read_item(manager, step, 'ema', fresh.ema)
    sound = rest is not None and ema is not None and _restore_iterator(manager, step, iterator)
    if not _everywhere(sound):
      damaged.append(step)
      continue
    for newer in damaged:  # only now: perhaps none of them fitted, and the fault is elsewhere
      _set_aside(manager, newer)
    return rest.replace(ema=ema)
  if damaged:
    raise UserError(f'{manager.directory}: no checkpoint there fits this run (see above); go back to the '
                    'settings and the version it was made with, or give another --workdir')
  return None


def _everywhere(sound):
  """Whether all processes found the checkpoint sound: they go on from one and the same, or not at all."""
  if jax.process_count() == 1:
    return sound
  return bool(multihost_utils.process_allgather(np.asarray(sound)).all())


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
  """The newest sound `TrainState` of `workdir`, as host arrays.

  Raises:
    UserError: there is none.
  """
  manager = make_reader(workdir)
  for step in sorted(manager.all_steps(), reverse=True):
    rest = read_item(manager, step, 'state', fresh.replace(ema=None))
    ema = read_item(manager, step, 'ema', fresh.ema)
    if rest is not None and ema is not None:
      return rest.replace(ema=ema)
  raise nothing_usable(workdir)


def _set_aside(manager, step):
  """Moves a damaged checkpoint out of the way, so that its step can be saved again."""
  if jax.process_index() == 0:
    root = pathlib.Path(manager.directory)
    damaged = root.parent / 'damaged_checkpoints'
    damaged.mkdir(exist_ok=True)
    target = damaged / str(step)
    suffix = 1
    while target.exists():
      suffix += 1
      target = damaged / f'{step}-{suffix}'
    (root / str(step)).rename(target)
    logging.warning('moved it to %s', target)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'checkpoint {step} is set aside')
  manager.reload()
