"""Data parallelism by `pmap`: replicate the state, split the batch, average the gradients."""

import functools

from flax import jax_utils
import jax
import numpy as np

from affectcodec_jax.errors import UserError
from affectcodec_jax.training.step import train_step

AXIS = 'data'


def pmap_train_step(config, adversarial):
  """`train_step` over all devices: (replicated state, replicated teacher, split batch)."""
  step = functools.partial(train_step, config=config, adversarial=adversarial, axis_name=AXIS)
  return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,))


def local_batch_size(batch_size):
  """Clips this process reads for a global batch of `batch_size`."""
  devices = jax.device_count()
  if batch_size % devices:
    raise UserError(f'train.batch_size={batch_size} does not divide over {devices} devices; '
                    f'use a multiple of {devices}')
  return batch_size // jax.process_count()


def split_batch(batch):
  """Every leaf `[B, ...]` to `[local devices, B / devices, ...]`."""
  n = jax.local_device_count()
  return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)


replicate = jax_utils.replicate


def unreplicate(tree):
  """Host copy of the first replica. A copy indeed: the device's buffers are donated to the next step."""
  return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data[0]), tree)
