"""Reading of a run's checkpoints: the averaged parameters, which are all that using a codec needs.

`training.checkpoints` writes them; what every item is, is said there.
"""

import logging
import pathlib
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from affectcodec_jax.common.errors import UserError

ITEMS = ('state', 'ema', 'data', 'meta')


def make_reader(workdir):
  """A manager that writes nothing, not even the folder."""
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  if not path.is_dir():
    raise nothing_usable(workdir)
  options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
  return ocp.CheckpointManager(path, options=options, item_names=ITEMS)


def checksums(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(x).tobytes())
          for path, x in leaves}


def restore_ema(workdir, fresh_ema):
  """(EMA parameters, step) of the newest sound checkpoint of `workdir`.

  Raises:
    UserError: there is none.
  """
  manager = make_reader(workdir)
  for step in sorted(manager.all_steps(), reverse=True):
    ema = read_item(manager, step, 'ema', fresh_ema)
    if ema is not None:
      return ema, step
  raise nothing_usable(workdir)


def nothing_usable(workdir):
  return UserError(f'{workdir}: holds no usable checkpoint; train one with '
                   f'python -m affectcodec_jax.train --workdir {workdir}')


def read_item(manager, step, name, target):
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
  if checksums(tree) != sums:
    logging.warning('checkpoint %d is damaged: checksums of %s do not match', step, name)
    return None
  return tree
