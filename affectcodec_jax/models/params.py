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
    # The names of some types are not NumPy's: KeyError.
    flat = {k: v.astype(np.float32) for k, v in safetensors.numpy.load_file(path).items()}
  except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as e:
    raise UserError(f'{path}: not a readable safetensors file ({e}); copy it again') from e
  for name in flat:
    parts = name.split('/')
    if not all(parts) or any('/'.join(parts[:i]) in flat for i in range(1, len(parts))):
      raise UserError(f'{path}: tensor names clash at {name!r}; copy the file again')
  bad = [name for name, value in flat.items() if not np.isfinite(value).all()]
  if bad:
    raise UserError(f'{path}: {len(bad)} of {len(flat)} tensors hold NaN or infinite values, {bad[0]} is '
                    'one; copy the file again, or train from an earlier checkpoint')
  return traverse_util.unflatten_dict(flat, sep='/')
