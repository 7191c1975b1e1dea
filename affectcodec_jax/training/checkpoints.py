"""Orbax checkpoints that are checked when they are read.

One checkpoint holds four items: `state` (everything but the average), `ema` (what encoding needs),
`data` (the input iterator) and `meta` (checksums, because the array files carry none). A checkpoint
that is incomplete or fails its checksums is set aside, and the one before it is used; where none is left,
nothing is touched.
"""

import logging
import pathlib
import zlib

import grain
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from affectcodec_jax.errors import UserError

ITEMS = ('state', 'ema', 'data', 'meta')


def make_manager(workdir, keep=3):
  """A manager of `workdir`/checkpoints that writes in the background and keeps the last `keep`."""
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  return ocp.CheckpointManager(path, options=options, item_names=ITEMS)


def _reader(workdir):
  """A manager that writes nothing, not even the folder."""
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  if not path.is_dir():
    raise _nothing_usable(workdir)
  options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
  return ocp.CheckpointManager(path, options=options, item_names=ITEMS)


def _checksums(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(x).tobytes())
          for path, x in leaves}


def save(manager, state, iterator):
  """Starts saving an unreplicated `TrainState` of host arrays at its own step."""
  ema, rest = state.ema, state.replace(ema=None)
  manager.save(int(state.step), args=ocp.args.Composite(
      state=ocp.args.StandardSave(rest),
      ema=ocp.args.StandardSave(ema),
      data=grain.checkpoint.CheckpointSave(iterator),
      meta=ocp.args.JsonSave({'state': _checksums(rest), 'ema': _checksums(ema)})))


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
    rest = _read(manager, step, 'state', fresh.replace(ema=None))
    ema = _read(manager, step, 'ema', fresh.ema)
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


def restore_ema(workdir, fresh_ema):
  """(EMA parameters, step) of the newest sound checkpoint of `workdir`.

  Raises:
    UserError: there is none.
  """
  manager = _reader(workdir)
  for step in sorted(manager.all_steps(), reverse=True):
    ema = _read(manager, step, 'ema', fresh_ema)
    if ema is not None:
      return ema, step
  raise _nothing_usable(workdir)


def restore_state(workdir, fresh):
  """The newest sound `TrainState` of `workdir`, as host arrays.

  Raises:
    UserError: there is none.
  """
  manager = _reader(workdir)
  for step in sorted(manager.all_steps(), reverse=True):
    rest = _read(manager, step, 'state', fresh.replace(ema=None))
    ema = _read(manager, step, 'ema', fresh.ema)
    if rest is not None and ema is not None:
      return rest.replace(ema=ema)
  raise _nothing_usable(workdir)


def _nothing_usable(workdir):
  return UserError(f'{workdir}: holds no usable checkpoint; train one with '
                   f'python -m affectcodec_jax.train --workdir {workdir}')


def _read(manager, step, name, target):
  """One item as host arrays, or None (with a warning) if it is unreadable or fails its checksums."""
  # Explicitly on one local device: a checkpoint of 8 devices restores on 1 and the reverse.
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), target)
  try:
    restored = manager.restore(step, args=ocp.args.Composite(
        **{name: ocp.args.StandardRestore(abstract), 'meta': ocp.args.JsonRestore()}))
    tree = jax.tree.map(np.asarray, restored[name])
    sums = restored['meta'][name]
  except Exception as e:  # orbax reports damage by many kinds of exception, plain Exception too
    logging.warning('checkpoint %d is not usable (%s: %s)', step, type(e).__name__,
                    ' '.join(str(e).split())[:200])
    return None
  if _checksums(tree) != sums:
    logging.warning('checkpoint %d is damaged: checksums of %s do not match', step, name)
    return None
  return tree


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
