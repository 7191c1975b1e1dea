"""The emotion networks of a codec, from their files, and the fingerprint that ties tokens to a model."""

import hashlib
import json
import os

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from affectcodec_jax.common import packaged
from affectcodec_jax.common.errors import UserError, describe
from affectcodec_jax.emotion import teachers
from affectcodec_jax.emotion.judge import Judge
from affectcodec_jax.models.codec import init_params
from affectcodec_jax.models.params import load_params


def check_codec(config, params, path):
  """Refuses parameters of another network than `config` describes.

  Raises:
    UserError: names the first parameter that is absent or of another shape.
  """
  init = lambda rng: init_params(config, rng)[0]
  try:
    shapes = jax.eval_shape(init, jax.random.PRNGKey(0))
  except Exception as e:  # whatever Flax and JAX make of sizes that do not fit one another
    raise UserError(f'{path}: its configuration makes no network ({describe(e)})') from e
  _check_shapes(path, params, shapes, 'the codec that its configuration describes')


def load_teacher(config, path=''):
  """Parameters of the teacher that `config.teacher` describes; '' is the compact one in the package.

  Raises:
    UserError: not such a teacher.
  """
  teachers.check(config)
  if not path and config.teacher.kind != 'compact':
    raise UserError(f'teacher.path is empty: {config.teacher.kind} is not in the package; convert its '
                    'checkpoint with python -m affectcodec_jax teacher convert')
  path = path or packaged.TEACHER
  if not os.path.exists(path):
    kind = config.teacher.kind
    if kind == 'compact':
      how = 'python -m affectcodec_jax teacher train'
    elif kind in teachers.WHISPER:
      how = 'python -m affectcodec_jax teacher convert whisper'
    else:
      how = 'python -m affectcodec_jax teacher convert emotion2vec'
    raise UserError(f'{path}: no such file; make it with {how}'
                    + (', or leave teacher.path empty' if kind == 'compact' else ''))
  params = load_params(path)
  what = f'a {config.teacher.kind} teacher of width teacher.dim={config.teacher.dim}'
  _check_shapes(path, params, teachers.teacher_shapes(config), what)
  if config.teacher.kind == 'compact':
    depth, wanted = teachers.make_compact(params).depth, teachers.make_teacher(config).depth
    if depth != wanted:  # a deeper one has all shapes of this one, too
      raise UserError(f'{path}: a teacher of {depth} layers, but teacher.depth={wanted}')
  return params


def load_compact(path):
  """Parameters of a compact teacher of any size.

  Raises:
    UserError: not such a teacher.
  """
  params = load_params(path)
  what = 'a compact teacher of python -m affectcodec_jax teacher train'
  try:
    network = teachers.make_compact(params)
  except (KeyError, TypeError, IndexError, AttributeError) as e:
    raise UserError(f'{path}: not {what}') from e
  _check_shapes(path, params, _shapes(network), what)
  return params


def load_judge(path):
  """Parameters of the network that judges emotion.

  Raises:
    UserError: not such a judge.
  """
  params = load_params(path)
  _check_shapes(path, params, _shapes(Judge()), 'a judge of python -m affectcodec_jax teacher train_judge')
  return params


def load_student(config, path):
  """Parameters of a student of this configuration's teacher.

  Raises:
    UserError: not a student, or one of features of another width.
  """
  params = load_params(path)
  try:
    network = teachers.make_student(params)
    if network.depth < 1:
      raise ValueError('no layers')
  except (KeyError, TypeError, IndexError, AttributeError, ValueError) as e:
    raise UserError(f'{path}: not a student; make one with python -m affectcodec_jax teacher distil') from e
  if network.dim != config.teacher.dim:
    raise UserError(f'{path}: a student of features {network.dim} wide, but teacher.dim='
                    f'{config.teacher.dim}')
  _check_shapes(path, params, _shapes(network), 'a student')
  return params


def load_frozen(config, workdir):
  """The emotion networks of a finished run: {'teacher': …}, and {'student': …} where it has one."""
  teacher = {'teacher': load_teacher(config, workdir / 'teacher.safetensors')}
  return (teacher | load_encoder_network(config, workdir)) if config.teacher.student else teacher


def load_encoder_network(config, workdir):
  """What the encoder of a finished run reads: {'student': …} where there is one, else {'teacher': …}."""
  if config.teacher.student:
    return {'student': load_student(config, workdir / 'student.safetensors')}
  return {'teacher': load_teacher(config, workdir / 'teacher.safetensors')}


def _shapes(network):
  return jax.eval_shape(network.init, jax.random.PRNGKey(0), jnp.zeros((1, 3200)))['params']


def _check_shapes(path, params, wanted, what):
  """Every wanted parameter must be there in its shape; others (a head) may be."""
  have, want = ({k: np.shape(v) for k, v in traverse_util.flatten_dict(tree, sep='/').items()}
                for tree in (params, wanted))
  for name in sorted(want):
    if have.get(name) != want[name]:
      raise UserError(f'{path}: not {what}: {name} is {have.get(name, "absent")}, should be '
                      f'{want[name]}')


def fingerprint(model_config, params, frozen):
  """8 bytes that differ between any two models whose tokens do not fit each other."""
  digest = hashlib.sha256(json.dumps(model_config, sort_keys=True).encode())
  for tree in (params, frozen):
    for name, value in sorted(traverse_util.flatten_dict(tree, sep='/').items()):
      digest.update(name.encode())
      digest.update(np.ascontiguousarray(value, np.float32).tobytes())
  return digest.digest()[:8]
