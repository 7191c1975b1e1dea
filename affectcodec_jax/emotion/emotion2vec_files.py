"""Converts a published checkpoint of emotion2vec: base, or one of the plus models (seed, base, large).

It is of PyTorch, and read without PyTorch and without running what it contains.
"""

import collections
import os
import re

import numpy as np

from affectcodec_jax.common.errors import UserError
from affectcodec_jax.common.files import check_file
from affectcodec_jax.emotion import emotion2vec as model
from affectcodec_jax.emotion.teachers import EMOTION2VEC
from affectcodec_jax.emotion.torch_checkpoint import read_checkpoint
from affectcodec_jax.models.params import save_params

_ENCODER = 'modality_encoders.AUDIO.'
# What pre-training alone needs: decoders, averaged copies, the head of reconstruction.
_LEFT_OUT = re.compile(r'(^|[._])(decoder|ema|recon_proj)([._]|$)')


def convert(checkpoint, output, float16=False):
  """Writes the emotion2vec in a PyTorch checkpoint as a file for `teacher.path`.

  Args:
    checkpoint: path of the checkpoint.
    output: path to write, .safetensors.
    float16: half the size; float32 otherwise.

  Raises:
    UserError: not a whole emotion2vec, or a place that cannot be written.
  """
  if os.path.realpath(checkpoint) == os.path.realpath(output):
    raise UserError(f'{output}: input and output are the same file')
  check_file(output)
  state, left_out = find_state(read_checkpoint(checkpoint), checkpoint)
  params, heads = convert_state(state, checkpoint)
  save_params(output, params, np.float16 if float16 else np.float32)
  dim = len(params['project']['bias'])
  kind = next((k for k, v in EMOTION2VEC.items() if v == (dim, heads)), None)
  print(f'{output}: {kind or "emotion2vec of another size"}, {dim} wide, {heads} heads, '
        f'{sum(v.size for v in state.values()) / 1e6:.1f} M parameters'
        + (', with the head of 9 classes' if 'head' in params else ''))
  print(f'left out: {", ".join(left_out) or "nothing"}')
  if kind:
    print(f'use it with --config.teacher.kind={kind} --config.teacher.dim={dim} '
          f'--config.teacher.path={output} --config.loss.posterior=0')
  else:
    print('no teacher.kind is of this size')


def find_state(checkpoint, name='checkpoint'):
  """The encoder's tensors `{name: array}` in what a checkpoint holds, and which entries are left out.

  Names of the latter are cut to the part that tells what they are of, with a count.

  Raises:
    UserError: no emotion2vec there.
  """
  outside = []
  for key in ('state_dict', 'model_state_dict', 'model'):
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
      outside += [str(k) for k in checkpoint if k != key]
      checkpoint = checkpoint[key]
  state = {}
  for key, value in checkpoint.items() if isinstance(checkpoint, dict) else ():
    plain = str(key).removeprefix('module.').removeprefix('d2v_model.')
    if not isinstance(value, np.ndarray) or (match := _LEFT_OUT.search(plain)):
      outside.append(plain[:match.end(2)] if isinstance(value, np.ndarray) else plain)
    else:
      state[plain] = value.astype(np.float32)
  if _ENCODER + 'extra_tokens' not in state:
    raise UserError(f'{name}: holds no emotion2vec ({_ENCODER}extra_tokens is absent)')
  return state, [f'{k} ({n})' if n > 1 else k for k, n in collections.Counter(outside).items()]


def convert_state(state, name='checkpoint'):
  """Flax parameters of `Emotion2Vec` from PyTorch's `{name: array}`, and the number of heads.

  Raises:
    UserError: names the first tensor that is absent, unknown or misshapen.
  """
  left = dict(state)

  def take(key, shape):
    if key not in left:
      raise UserError(f'{name}: not a whole emotion2vec: {key} is absent')
    if shape and left[key].shape != shape:
      raise UserError(f'{name}: not an emotion2vec: {key} is {left[key].shape}, should be {shape}')
    return left.pop(key)

  def dense(key, n, m):
    return {'kernel': take(key + '.weight', (m, n)).T, 'bias': take(key + '.bias', (m,))}

  def norm(key, n):
    return {'scale': take(key + '.weight', (n,)), 'bias': take(key + '.bias', (n,))}

  def conv(key, n, m, taps):
    return take(key, (m, n, taps)).transpose(2, 1, 0)  # [out, in, taps] -> [taps, in, out]

  dim = state[_ENCODER + 'extra_tokens'].size // model.EXTRA_TOKENS
  scale = take(_ENCODER + 'alibi_scale', None)  # [blocks or 1, 1, heads or 1, 1, 1]
  heads = scale.shape[-3] if scale.ndim > 3 and scale.shape[-3] > 1 else dim // 64
  network = model.Emotion2Vec(dim, heads)
  depth = network.prenet_blocks + network.main_blocks
  table = scale.reshape(-1, max(scale.shape[-3], 1)) if scale.ndim in (4, 5) else scale
  if table.shape not in ((1, 1), (1, heads), (depth, 1), (depth, heads)) or not heads or dim % heads:
    raise UserError(f'{name}: not an emotion2vec: {_ENCODER}alibi_scale is {scale.shape}')
  params = {'alibi_scale': np.broadcast_to(table, (depth, heads))}
  params['extra_tokens'] = take(_ENCODER + 'extra_tokens', (1, model.EXTRA_TOKENS, dim))[0]
  width = 1
  for i, (taps, _) in enumerate(model.CONVS):
    key = f'{_ENCODER}local_encoder.conv_layers.{i}'
    params[f'convs_{i}'] = {'kernel': conv(key + '.0.weight', width, model.CONV_WIDTH, taps)}
    width = model.CONV_WIDTH
    params[f'conv_norms_{i}'] = norm(key + '.2.1', width)
  params['project_norm'] = norm(_ENCODER + 'project_features.1', width)
  params['project'] = dense(_ENCODER + 'project_features.2', width, dim)
  for i in range(model.POSITION_LAYERS):
    key = f'{_ENCODER}relative_positional_encoder.{i + 1}.0'
    kernel = conv(key + '.weight', dim // model.POSITION_GROUPS, dim, model.POSITION_KERNEL)
    params[f'positions_{i}'] = {'kernel': kernel, 'bias': take(key + '.bias', (dim,))}
  params['context_norm'] = norm(_ENCODER + 'context_encoder.norm', dim)
  blocks = [f'{_ENCODER}context_encoder.blocks.{i}' for i in range(network.prenet_blocks)]
  for i, key in enumerate([*blocks, *(f'blocks.{i}' for i in range(network.main_blocks))]):
    params[f'blocks_{i}'] = {
        'norm1': norm(key + '.norm1', dim), 'norm2': norm(key + '.norm2', dim),
        'qkv': dense(key + '.attn.qkv', dim, 3 * dim), 'proj': dense(key + '.attn.proj', dim, dim),
        'fc1': dense(key + '.mlp.fc1', dim, 4 * dim), 'fc2': dense(key + '.mlp.fc2', 4 * dim, dim)}
  if 'proj.weight' in left:
    params['head'] = dense('proj', dim, len(model.CLASSES))
  if left:
    raise UserError(f'{name}: not an emotion2vec that this reads: {sorted(left)[0]} is not known')
  return params, heads
