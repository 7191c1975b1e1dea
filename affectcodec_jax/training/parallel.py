"""One training step over many devices, by `pmap` or over a mesh; chosen by `train.parallel`.

'pmap': every device has the whole state and its part of the batch; gradients are averaged. 'mesh': the same
`train_step` under `jit` over a mesh of axes `data` and `fsdp`. The batch is split over both; parameters,
their average and the optimisers' moments over `fsdp`, each along its longest axis that divides; XLA puts in
their collectives. Gradients are each device's own, of its clips and whole parameters, by `shard_map`, and
then averaged: nothing of the batch's size crosses devices, whatever XLA makes of an operation. With
`train.fsdp=1` nothing but the batch is split.
"""

from collections.abc import Callable
import functools
import hashlib
import os
from typing import Any, NamedTuple

from flax import jax_utils
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.training.state import TrainState
from affectcodec_jax.training.step import train_step

AXIS = 'data'
Tree = Any  # a pytree of arrays
Step = Callable[[TrainState, Tree, Tree], tuple[TrainState, dict[str, jax.Array]]]


class Parallel(NamedTuple):
  """How a run uses its devices.

  Attributes:
    sharding: shapes of a state to how it is made and read from a checkpoint.
    place: a state laid out so, or host arrays of a state or of frozen parameters, to the devices.
    split: this process's part of a batch, leaves `[B / processes, ...]`, to the devices.
    compile: `adversarial` to a training step of what `place` and `split` give.
    to_save: the state on the devices to what a checkpoint takes.
    fetch: what is on the devices to a host copy, whole, the same in every process.
  """

  sharding: Callable[[Tree], Tree]
  place: Callable[[Tree], Tree]
  split: Callable[[Tree], Tree]
  compile: Callable[[bool], Step]
  to_save: Callable[[Tree], Tree]
  fetch: Callable[[Tree], Tree]


def join_processes():
  """Connects the processes of a run, by the variables of launch/local.sh or as JAX finds them.

  Raises:
    UserError: the others were not found.
  """
  names = {'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}
  try:
    jax.distributed.initialize(**{key: int(os.environ[name]) for key, name in names.items()
                                  if name in os.environ})
  except (ValueError, RuntimeError) as e:
    raise UserError(f'train.distributed: the other processes were not found ({e}); leave it False for '
                    'one process, start several by launch/local.sh, launch/tpu.sh, Slurm or MPI') from e


def check_same(what, describe):
  """Refuses to go on where the text of `describe()`, called with several processes only, is not the same.

  Raises:
    UserError: it differs; `what` says of what.
  """
  if jax.process_count() == 1:
    return
  digest = np.frombuffer(hashlib.blake2b(describe().encode(), digest_size=8).digest(), np.uint8)
  theirs = multihost_utils.process_allgather(digest)
  if not (theirs == digest).all():
    raise UserError(f'{what}: not the same in all processes; look for files that some of them do not see, '
                    'and start all again')


def make_parallel(config) -> Parallel:
  """What `train.parallel` names.

  Raises:
    UserError: `train.fsdp` does not divide the devices.
  """
  if config.train.parallel == 'mesh':
    return _mesh(config)
  # Under the name of the axis: with another the step would be traced again for what it returned itself.
  replicate = functools.partial(jax_utils.replicate, axis_name=AXIS)
  local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return Parallel(
      sharding=lambda shapes: jax.tree.map(lambda _: local, shapes), place=replicate, split=split_batch,
      compile=functools.partial(pmap_train_step, config), to_save=unreplicate, fetch=unreplicate)


def laid_out(shapes, sharding):
  """Arrays' shapes with the shardings of a tree like theirs."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding)


def fetch_scalars(metrics):
  """A step's metrics, scalars that are the same on every device, as floats, by one transfer."""
  first = [x.addressable_shards[0].data for x in metrics.values()]
  return dict(zip(metrics, np.asarray(_row(first)).tolist()))


@jax.jit
def _row(scalars):
  return jnp.stack([x.reshape(()).astype(jnp.float32) for x in scalars])


def pmap_train_step(config, adversarial, devices=None):
  """`train_step` over these devices, or all: (replicated state, replicated teacher, split batch)."""
  step = functools.partial(train_step, config=config, adversarial=adversarial, axis_name=AXIS)
  return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,), devices=devices)


def local_batch_size(config):
  """Clips this process reads for the global batch.

  Raises:
    UserError: the batch does not divide over devices and accumulated pieces.
  """
  check_batch(config, jax.device_count())
  return config.train.batch_size // jax.process_count()


def check_batch(config, devices):
  """Checks that the batch divides over so many devices and accumulated pieces.

  Raises:
    UserError: it does not.
  """
  pieces = devices * config.train.accumulate
  if config.train.batch_size % pieces:
    raise UserError(f'train.batch_size={config.train.batch_size} does not divide over {devices} devices in '
                    f'{config.train.accumulate} pieces (train.accumulate); use a multiple of {pieces}')


def split_batch(batch):
  """Every leaf `[B, ...]` to `[local devices, B / devices, ...]`."""
  n = jax.local_device_count()
  return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)


def unreplicate(tree):
  """Host copy of the first replica. A copy indeed: the device's buffers are donated to the next step."""
  return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data[0]), tree)


def make_mesh(config, devices=None):
  """The mesh of `train.fsdp`, of these devices or all there are.

  Raises:
    UserError: `train.fsdp` does not divide them.
  """
  devices, fsdp = jax.devices() if devices is None else devices, config.train.fsdp
  if len(devices) % fsdp:
    raise UserError(f'train.fsdp={fsdp} does not divide {len(devices)} devices')
  return jax.make_mesh((len(devices) // fsdp, fsdp), (AXIS, 'fsdp'), axis_types=(AxisType.Auto,) * 2,
                       devices=devices)


def state_sharding(mesh, tree):
  """How a mesh's devices hold the arrays, or shapes, of a state or of frozen parameters."""
  return jax.tree.map(lambda x: NamedSharding(mesh, fsdp_spec(np.shape(x), mesh.shape['fsdp'])), tree)


def batch_sharding(mesh):
  """How they hold every array of a batch."""
  return NamedSharding(mesh, PartitionSpec((AXIS, 'fsdp')))


def mesh_train_step(config, mesh, adversarial):
  """`train_step` over a mesh, of arrays as `state_sharding` and `batch_sharding` lay them out."""
  whole, split = PartitionSpec(), batch_sharding(mesh).spec

  def map_devices(function):
    # With check_vma gradients of whole parameters would be summed before they are averaged.
    return jax.shard_map(function, mesh=mesh, in_specs=(whole,) * 5 + (split,), out_specs=whole,
                         check_vma=False)

  step = functools.partial(train_step, config=config, adversarial=adversarial, axis_name=mesh.axis_names,
                           map_devices=map_devices)

  @functools.partial(jax.jit, donate_argnums=(0,))
  def run(state, frozen, batch):
    new, metrics = step(state, frozen, batch)
    # As it came in: XLA would be free to lay the new state out in another way.
    return jax.lax.with_sharding_constraint(new, state_sharding(mesh, new)), metrics

  return run


def _mesh(config):
  mesh = make_mesh(config)

  def place(tree):
    def one(x, sharding):
      if getattr(x, 'sharding', None) == sharding:
        return x
      # Every process has the whole; each device takes its part.
      return jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i])
    return jax.tree.map(one, tree, state_sharding(mesh, tree))

  def split(batch):
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

  def fetch(tree):
    if jax.process_count() == 1:
      return jax.tree.map(np.array, jax.device_get(tree))
    return multihost_utils.process_allgather(tree, tiled=True)

  return Parallel(
      sharding=functools.partial(state_sharding, mesh), place=place, split=split,
      compile=functools.partial(mesh_train_step, config, mesh), to_save=lambda state: state, fetch=fetch)


def fsdp_spec(shape, parts):
  """Splits the longest axis that `parts` divides over `fsdp`; small arrays and others stay whole."""
  if parts == 1 or np.prod(shape) < 1024:
    return PartitionSpec()
  fitting = [i for i, n in enumerate(shape) if n % parts == 0]
  if not fitting:
    return PartitionSpec()
  longest = max(fitting, key=lambda i: shape[i])
  return PartitionSpec(*[None] * longest, 'fsdp')
