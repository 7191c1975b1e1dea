"""Parameter trees as safetensors files, and the fingerprint that ties tokens to a model."""

import hashlib
import json
import os
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from affectcodec_jax.errors import UserError
from affectcodec_jax.files import write_whole
from affectcodec_jax.models.teacher import Teacher

PACKAGED_TEACHER = pathlib.Path(__file__).parent / 'pretrained' / 'teacher.safetensors'


def save_params(path, params, dtype=np.float32):
  """Writes a parameter tree; the file appears whole or not at all."""
  flat = {k: np.asarray(v, dtype) for k, v in traverse_util.flatten_dict(params, sep='/').items()}
  write_whole(path, safetensors.numpy.save(flat))


def load_params(path):
  """Reads a parameter tree as float32.

  Raises:
    UserError: no such file, or not a safetensors file.
  """
  if not os.path.exists(path):
    raise UserError(f'{path}: no such file; train a teacher with python -m '
                    'affectcodec_jax.train_teacher, or leave teacher.path empty')
  try:
    flat = safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as e:
    raise UserError(f'{path}: not a readable safetensors file ({e})') from e
  return traverse_util.unflatten_dict({k: v.astype(np.float32) for k, v in flat.items()}, sep='/')


def load_teacher(dim, path=''):
  """Frozen teacher parameters of width `dim` from a file; '' is the teacher in the package.

  Raises:
    UserError: not a teacher of that width.
  """
  path = path or PACKAGED_TEACHER
  params = load_params(path)
  shapes = jax.eval_shape(Teacher(dim).init, jax.random.PRNGKey(0),
                          jnp.zeros((1, 3200)), jnp.ones((1, 10), bool))['params']
  have, want = ({k: np.shape(v) for k, v in traverse_util.flatten_dict(tree, sep='/').items()}
                for tree in (params, shapes))
  wrong = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
  if wrong:
    name = wrong[0]
    raise UserError(f'{path}: not a teacher of width teacher.dim={dim}: {name} is '
                    f'{have.get(name, "absent")}, should be {want.get(name, "absent")}')
  return params


def fingerprint(model_config, params, teacher):
  """8 bytes that differ between any two models whose tokens do not fit each other."""
  digest = hashlib.sha256(json.dumps(model_config, sort_keys=True).encode())
  for tree in (params, teacher):
    for name, value in sorted(traverse_util.flatten_dict(tree, sep='/').items()):
      digest.update(name.encode())
      digest.update(np.ascontiguousarray(value, np.float32).tobytes())
  return digest.digest()[:8]
