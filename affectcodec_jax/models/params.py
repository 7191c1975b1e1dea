"""Parameter trees as safetensors files."""

import os

from flax import traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import write_whole


def save_params(path, params, dtype=np.float32):
  """Writes a parameter tree; the file appears whole or not at all."""
  # In C order: safetensors writes an array's memory as it lies.
  flat = {k: np.array(v, dtype, order='C') for k, v in traverse_util.flatten_dict(params, sep='/').items()}
  write_whole(path, safetensors.numpy.save(flat))


def load_params(path):
  """Reads a parameter tree as float32.

  Raises:
    UserError: no such file, or not a safetensors file.
  """
  if not os.path.exists(path):
    raise UserError(f'{path}: no such file')
  try:
    flat = safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as e:
    raise UserError(f'{path}: not a readable safetensors file ({e})') from e
  return traverse_util.unflatten_dict({k: v.astype(np.float32) for k, v in flat.items()}, sep='/')
