"""Reading of a run's checkpoints: the averaged parameters, which are all that using a codec needs.

`training.checkpoints` writes them; what every item is, is said there.
"""

import logging
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from affectcodec_jax.common import buckets
from affectcodec_jax.common.errors import UserError, brief

ITEMS = ('state', 'ema', 'data', 'meta')


def make_reader(workdir):
  """A manager that writes nothing, not even the folder."""
  options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
  with buckets.as_user_error(workdir):
    path = buckets.folder(workdir) / 'checkpoints'
    if not path.is_dir():
      raise nothing_usable(workdir)
    return ocp.CheckpointManager(path, options=options, item_names=ITEMS)


def checksums(tree):
  """{path: sum of bits * (2 i + 1) modulo 2^64, i the entry's place in the whole array}.

  The same however the arrays are laid out. Of arrays over several processes' devices each process adds
  up its own shards, and only the sums cross; all processes have to call this then.
  """
  named = jax.tree_util.tree_leaves_with_path(tree)
  sums = [sum(_sum(np.asarray(shard.data), x.shape, [s.start or 0 for s in shard.index])
              for shard in x.addressable_shards if not shard.replica_id) % 2 ** 64
          if _is_spread(x) else _sum(np.asarray(x), x.shape, [0] * x.ndim) for _, x in named]
  if any(_is_spread(x) for _, x in named):
    halves = np.array(sums, np.uint64).view(np.uint32)  # jax has no 64 bits by default
    parts = np.ascontiguousarray(multihost_utils.process_allgather(halves)).view(np.uint64)
    sums = [int(part.sum()) if _is_spread(x) else one for (_, x), part, one in zip(named, parts.T, sums)]
  return {jax.tree_util.keystr(path): one for (path, _), one in zip(named, sums)}


def _is_spread(x):
  return isinstance(x, jax.Array) and not x.is_fully_addressable


def _sum(part, shape, start):
  """What the part of an array of `shape` that begins at `start` adds to its checksum."""
  place = np.zeros((), np.uint64)
  for n, whole, first in zip(part.shape, shape, start):
    place = place[..., None] * np.uint64(whole) + np.arange(first, first + n, dtype=np.uint64)
  bits = np.ascontiguousarray(part).reshape(part.shape).view(f'u{part.dtype.itemsize}')
  return int(np.sum(bits * (2 * place + 1), dtype=np.uint64))


def _crc32s(tree):
  """The checksums of checkpoints up to release 0.3, of whole arrays."""
  def whole(x):
    return multihost_utils.process_allgather(x, tiled=True) if _is_spread(x) else np.asarray(x)
  return {jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(whole(x)).tobytes())
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def all_processes_agree(intact):
  """Whether all processes found a checkpoint intact: they go on from one and the same, or not at all."""
  if jax.process_count() == 1:
    return intact
  return bool(multihost_utils.process_allgather(np.asarray(intact)).all())


def restore_newest(workdir, **shapes):
  """({item: its arrays, on the host}, step) of the newest checkpoint of `workdir` whose items are intact.

  Args:
    workdir: of a run.
    **shapes: arrays or shape structs of each item of `ITEMS` that is wanted.

  Raises:
    UserError: there is none.
  """
  with make_reader(workdir) as manager:
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
      items = {name: read_item(manager, step, name, target) for name, target in shapes.items()}
      if all(item is not None for item in items.values()):
        return items, step
  raise nothing_usable(workdir, steps)


def nothing_usable(workdir, steps=()):
  """What to raise where none of the checkpoints of these `steps` could be read, or there is none."""
  if steps:
    return UserError(f'{workdir}: none of its checkpoints can be used (see above); what another release '
                     'trained is for that release')
  return UserError(f'{workdir}: holds no usable checkpoint; train one with '
                   f'python -m affectcodec_jax.train --workdir {workdir}')


def read_item(manager, step, name, target):
  """One item, or None (with a warning) if it is unreadable or fails its checksums.

  Args:
    manager, step, name: where it is.
    target: its shapes. With shardings it is read straight into those, each process its own part, whatever
      devices wrote it; without, it is host arrays.
  """
  # Explicitly on one local device: a checkpoint of 8 devices restores on 1 and the reverse.
  local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shardings = jax.tree.map(lambda x: getattr(x, 'sharding', None) or local, target)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), target,
                          shardings)
  on_host = not any(getattr(x, 'sharding', None) for x in jax.tree.leaves(target))
  tree = None
  try:
    restored = manager.restore(step, args=ocp.args.Composite(
        **{name: ocp.args.StandardRestore(abstract), 'meta': ocp.args.JsonRestore()}))
    tree = jax.tree.map(np.asarray, restored[name]) if on_host else restored[name]
    meta = restored['meta']
    written, sums_of = (meta['sums'][name], checksums) if 'sums' in meta else (meta[name], _crc32s)
  except Exception as e:  # orbax reports damage by many kinds of exception, plain Exception too
    logging.warning('checkpoint %d is not usable (%s: %s)', step, type(e).__name__,
                    brief(e))
  # Sums of what is spread over processes need them all.
  if not (tree is not None if on_host else all_processes_agree(tree is not None)):
    return None
  if sums_of(tree) != written:
    logging.warning('checkpoint %d is damaged: checksums of %s do not match', step, name)
    return None
  return tree
