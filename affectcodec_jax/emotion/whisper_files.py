"""Parameters of `whisper.Whisper` from published files: of OpenAI, transformers or CTranslate2."""

import itertools
import os

from flax import traverse_util
import numpy as np
import safetensors

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion import ctranslate2_file, torch_checkpoint
from affectcodec_jax.emotion.teachers import WHISPER
from affectcodec_jax.emotion.whisper import MELS, POSITIONS
from affectcodec_jax.models.params import save_params

# Names in each kind of file. Queries, keys and values are three matrices, or one above the other.
_OPENAI = {
    'block': 'blocks.{}.', 'norm1': 'attn_ln', 'qkv': ('attn.query', 'attn.key', 'attn.value'),
    'proj': 'attn.out', 'norm2': 'mlp_ln', 'fc1': 'mlp.0', 'fc2': 'mlp.2',
    'positions': 'positional_embedding', 'norm': 'ln_post', 'weight': '.weight', 'bias': '.bias',
    'scale': '.weight', 'shift': '.bias'}
_TRANSFORMERS = {
    'block': 'layers.{}.', 'norm1': 'self_attn_layer_norm',
    'qkv': ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'), 'proj': 'self_attn.out_proj',
    'norm2': 'final_layer_norm', 'fc1': 'fc1', 'fc2': 'fc2', 'positions': 'embed_positions.weight',
    'norm': 'layer_norm', 'weight': '.weight', 'bias': '.bias', 'scale': '.weight', 'shift': '.bias'}
_CTRANSLATE2 = {
    'block': 'layer_{}/', 'norm1': 'self_attention/layer_norm', 'qkv': ('self_attention/linear_0',),
    'proj': 'self_attention/linear_1', 'norm2': 'ffn/layer_norm', 'fc1': 'ffn/linear_0',
    'fc2': 'ffn/linear_1', 'positions': 'position_encodings/encodings', 'norm': 'layer_norm',
    'weight': '/weight', 'bias': '/bias', 'scale': '/gamma', 'shift': '/beta'}
_PREFIXES = ('model.encoder.', 'encoder.', 'encoder/', '')
_MAX_WIDTH = 2048  # the largest that is published is 1280 wide


def convert(path, output, layer, float16=False):
  """Writes the encoder of a published Whisper, up to a block, as a file for `teacher.path`.

  Args:
    path: a file that `read_tensors` reads.
    output: path to write, .safetensors.
    layer: blocks to keep, for `teacher.layer`.
    float16: half the size; float32 otherwise.

  Raises:
    UserError: not a whole Whisper, or a place that cannot be written.
  """
  if os.path.realpath(path) == os.path.realpath(output):
    raise UserError(f'{output}: input and output are the same file')
  params, blocks = convert_tensors(read_tensors(path), layer, path)
  save_params(output, params, np.float16 if float16 else np.float32)
  dim = len(params['conv1']['bias'])
  kind = next((k for k, v in WHISPER.items() if v == (dim, blocks)), None)
  size = sum(v.size for v in traverse_util.flatten_dict(params).values())
  print(f'{output}: {kind or "Whisper of another size"}, {dim} wide, {layer} of {blocks} blocks, '
        f'{size / 1e6:.1f} M parameters')
  if kind:
    print(f'use it with --config.teacher.kind={kind} --config.teacher.dim={dim} '
          f'--config.teacher.layer={layer} --config.teacher.path={output} --config.loss.posterior=0')
  else:
    print('no teacher.kind is of this size')


def read_tensors(path):
  """Tensors `{name: array}` of a PyTorch checkpoint, a safetensors file or a CTranslate2 model.

  Raises:
    UserError: none of these, or damaged.
  """
  try:
    with open(path, 'rb') as f:
      start = f.read(16)
    if start[8:9] == b'{':
      with safetensors.safe_open(path, 'np') as f:
        return {k: f.get_tensor(k) for k in f.keys()}
  except FileNotFoundError as e:
    raise UserError(f'{path}: no such file') from e
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror})') from e
  except (safetensors.SafetensorError, ValueError, TypeError) as e:
    raise UserError(f'{path}: not a readable safetensors file ({e})') from e
  if ctranslate2_file.looks_like_model(start):
    return ctranslate2_file.read_model(path)[1]
  checkpoint = torch_checkpoint.read_checkpoint(path)
  for key in ('model_state_dict', 'state_dict'):
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
      checkpoint = checkpoint[key]
  items = checkpoint.items() if isinstance(checkpoint, dict) else ()
  return {str(k): v for k, v in items if isinstance(v, np.ndarray)}


def convert_tensors(tensors, layer, name='file'):
  """Parameters of `Whisper(dim, layer)`, and how many blocks the encoder in `tensors` has.

  Args:
    tensors: `{name: array}` of the whole model or of its encoder.
    layer: blocks to take; what comes after them is left out.
    name: of the file, for messages.

  Raises:
    UserError: names the first tensor that is absent, unknown or misshapen.
  """
  prefix, names = _find_encoder(tensors, name)
  blocks = next(i for i in itertools.count() if _block(prefix, names, i) + names['fc1'] + names['weight']
                not in tensors)
  if not 1 <= layer <= blocks:
    raise UserError(f'{name}: has {blocks} blocks in its encoder, --layer {layer} is not one of them')
  left = {k for k, v in tensors.items() if k.startswith(prefix) and v.ndim}  # numbers alone are settings

  def take(key, shape):
    if key not in tensors:
      raise UserError(f'{name}: not a whole Whisper: {key} is absent')
    if tensors[key].shape != shape:
      raise UserError(f'{name}: not such a Whisper: {key} is {tensors[key].shape}, should be {shape}')
    left.discard(key)
    return tensors[key].astype(np.float32)

  def dense(key, n, m):
    return {'kernel': take(key + names['weight'], (m, n)).T, 'bias': take(key + names['bias'], (m,))}

  def norm(key):
    return {'scale': take(key + names['scale'], (dim,)), 'bias': take(key + names['shift'], (dim,))}

  def conv(key, n):
    kernel = take(key + names['weight'], (dim, n, 3))
    return {'kernel': kernel.transpose(2, 1, 0),  # [out, in, taps] -> [taps, in, out]
            'bias': take(key + names['bias'], (dim,))}

  def qkv(keys):
    if len(keys) == 1:
      return dense(keys[0], dim, 3 * dim)
    kernels = [take(key + names['weight'], (dim, dim)).T for key in keys]
    query, value = (take(keys[i] + names['bias'], (dim,)) for i in (0, 2))
    # Keys have no bias: it would change no softmax.
    return {'kernel': np.concatenate(kernels, axis=1), 'bias': np.concatenate([query, 0 * query, value])}

  dim = (tensors[prefix + 'conv1' + names['weight']].shape or (0,))[0]
  if not dim or dim % 64 or dim > _MAX_WIDTH:
    raise UserError(f'{name}: not a Whisper: it is {dim} wide')
  params = {'conv1': conv(prefix + 'conv1', MELS), 'conv2': conv(prefix + 'conv2', dim)}
  params['positions'] = take(prefix + names['positions'], (POSITIONS, dim))
  for i in range(layer):
    block = _block(prefix, names, i)
    params[f'blocks_{i}'] = {
        'norm1': norm(block + names['norm1']), 'norm2': norm(block + names['norm2']),
        'qkv': qkv([block + key for key in names['qkv']]), 'proj': dense(block + names['proj'], dim, dim),
        'fc1': dense(block + names['fc1'], dim, 4 * dim), 'fc2': dense(block + names['fc2'], 4 * dim, dim)}
  beyond = [_block(prefix, names, i) for i in range(layer, blocks)] + [prefix + names['norm']]
  if unknown := sorted(k for k in left if not k.startswith(tuple(beyond))):
    raise UserError(f'{name}: not a Whisper that this reads: {unknown[0]} is not known')
  return params, blocks


def _find_encoder(tensors, name):
  """What the names of the encoder's tensors begin with, and the table of names that they follow."""
  for names in (_OPENAI, _TRANSFORMERS, _CTRANSLATE2):
    for prefix in _PREFIXES:
      first = _block(prefix, names, 0) + names['qkv'][0] + names['weight']
      if first in tensors and prefix + 'conv1' + names['weight'] in tensors:
        return prefix, names
  raise UserError(f'{name}: holds no encoder of Whisper')


def _block(prefix, names, i):
  return prefix + names['block'].format(i)
