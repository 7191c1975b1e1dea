"""Whisper's encoder at a small size, and the converter on hand-built files; parity is tested elsewhere."""

import functools
import json
import os
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from affectcodec_jax import __main__ as cli
from affectcodec_jax import config as config_lib
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion import teachers
from affectcodec_jax.emotion.whisper import Whisper, log_mel, sinusoids
from affectcodec_jax.inference import weights
from affectcodec_jax.models.params import load_params
from configs.base import get_config
from tests.conftest import check_gradient_by_audio
from tests.test_emotion2vec import attacks, dumped, write_checkpoint

DIM, LAYER = 64, 2
small = functools.partial(Whisper, DIM, LAYER)


def speech(batch, hops, seed=0):
  """Noise, `[batch, hops * 320]`."""
  return (np.random.default_rng(seed).normal(size=(batch, hops * 320)) / 10).astype(np.float32)


@pytest.fixture(scope='module')
def params():
  init = jax.jit(functools.partial(small().init, method='features'))
  fresh = init(jax.random.key(0), speech(1, 4))['params']
  # Away from the initial values, which hide what biases and scales do.
  leaves, tree = jax.tree.flatten(fresh)
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def features(params, audio, mask=None, **fields):
  return small(**fields).apply({'params': params}, audio, mask, method='features')


@pytest.mark.parametrize('hops', [1, 2, 3, 10, 11, 50, 1499, 1500, 1501, 3001])
def test_frames_are_in_step_with_the_codec(params, hops):
  """N / 320 frames for each N, also of more than the published model's 30 s, of which it makes 1500."""
  audio = jax.ShapeDtypeStruct((2, hops * 320), jnp.float32)
  ours = jax.eval_shape(functools.partial(features, params), audio)
  assert ours.shape == (2, hops, DIM) and ours.dtype == jnp.float32
  mel = jax.eval_shape(log_mel, audio)
  assert mel.shape == (2, 2 * hops + 1, 80)
  if hops <= 1500:
    theirs = jax.eval_shape(
        lambda x: small().apply({'params': params}, x, method='published_features'), audio)
    assert theirs.shape == (2, 1500, DIM)


@pytest.mark.parametrize('hops', [1, 2, 7, 49])
def test_frames_before_attention_are_the_published_ones(params, hops):
  """Alone or filled up with silence: the same until attention, which sees the silence in the latter."""
  audio = speech(1, hops)
  params = params | {'positions': params['positions'][:50]}  # a Whisper of 1 s: the silence costs time
  for layer, equal in ((0, True), (1, False)):
    network = Whisper(DIM, layer, positions=50)
    ours, theirs = (network.apply({'params': params}, audio, method=m)
                    for m in ('features', 'published_features'))
    assert theirs.shape == (1, 50, DIM)
    assert (np.abs(ours - theirs[:, :hops]).max() < 1e-5) == equal


def test_padding_does_not_leak(params):
  """A batch of unequal lengths gives what each clip gives by itself, whatever the padding holds.

  Tolerance 1e-5 of features of order 1: sums of other lengths, in another order.
  """
  audio, lengths = speech(3, 7), (7, 3, 0)
  mask = np.arange(7) < np.array(lengths)[:, None]
  audio = np.where(np.repeat(mask, 320, axis=1), audio, [[0], [70], [np.nan]]).astype(np.float32)
  run = jax.jit(functools.partial(features, params))
  batch = run(audio, mask)
  for i, n in enumerate(lengths[:2]):
    np.testing.assert_allclose(batch[i, :n], run(audio[i:i + 1, :n * 320], None)[0], atol=1e-5)
  assert np.isfinite(batch).all()  # of nothing but padding too


def test_longer_recordings_go_on_in_windows(params):
  """Windows of 5 frames: each is as a recording by itself, but for what convolutions see beside it."""
  audio = speech(1, 12)
  audio[:, 5 * 320:6 * 320] = 0  # after the first window, as after the end
  audio[:, [100, 11 * 320 + 100]] = 3.0  # the loudest, in every part
  params = params | {'positions': params['positions'][:5]}
  run = jax.jit(functools.partial(features, params, positions=5))
  whole = np.asarray(run(audio))
  np.testing.assert_allclose(whole[:, :5], run(audio[:, :5 * 320]), atol=1e-5)
  other = audio.copy()
  other[:, 320:3 * 320] = speech(1, 2, seed=1)
  changed = np.abs(whole - run(other)).max(axis=-1)[0]
  assert (changed[:5] > 1e-3).all() and (changed[5:] < 1e-5).all()
  mask = np.arange(17)[None] < 12  # a part of a window, and a whole one, of padding
  padded = run(np.pad(audio, ((0, 0), (0, 5 * 320)), constant_values=9), mask)
  np.testing.assert_allclose(padded[:, :12], whole, atol=1e-5)
  gradient = jax.jit(jax.grad(lambda x: features(params, x, positions=5).sum()))(audio)
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_gradient_by_the_audio(params):
  """Alive in each valid sample, zero in padding, right along its own direction; the same with remat."""
  mask = np.arange(5)[None] < np.array([[5], [3]])
  audio = speech(2, 5)
  weight = np.random.default_rng(3).normal(size=(2, 5, DIM)) * mask[..., None]
  plain = check_gradient_by_audio(features, params, audio, mask, weight, step=1e-4)
  assert np.isfinite(plain(np.zeros_like(audio))[1]).all()  # of digital silence


def test_bfloat16_is_close(params):
  """bfloat16 has 8 bits: features of order 1 within a few per cent in the mean. Output is float32."""
  audio = speech(1, 5)
  exact = jax.jit(features)(params, audio)
  rough = jax.jit(functools.partial(features, dtype=jnp.bfloat16))(params, audio)
  assert rough.dtype == jnp.float32
  error = jnp.sqrt(jnp.mean(jnp.square(exact - rough)) / jnp.mean(jnp.square(exact)))
  assert 0 < error < 0.05
  fresh = jax.eval_shape(functools.partial(small(dtype=jnp.bfloat16).init, method='features'),
                         jax.random.key(0), audio)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(fresh))


def test_log_mel_has_80_db_below_the_loudest():
  """The range counts by the recording alone, and a level 20 dB up is half a unit more."""
  audio = speech(2, 6)
  audio[:, 3 * 320:] *= 1e-6
  mask = np.arange(6)[None] < np.array([[6], [3]])
  mel = np.asarray(log_mel(audio, mask))
  np.testing.assert_allclose(mel.max(axis=(1, 2)) - mel.min(axis=(1, 2)), 2, atol=1e-6)
  np.testing.assert_allclose(log_mel(10 * audio, mask), mel + 0.5, atol=1e-4)
  np.testing.assert_array_equal(log_mel(np.zeros((1, 640), np.float32)), -1.5)


# Files, written by hand in each of the published forms.

BLOCKS = 3


def published(dim=DIM, blocks=BLOCKS):
  """Random tensors with the names and shapes of OpenAI's checkpoint, float32."""
  shapes = {'conv1.weight': (dim, 80, 3), 'conv1.bias': (dim,), 'conv2.weight': (dim, dim, 3),
            'conv2.bias': (dim,), 'positional_embedding': (1500, dim), 'ln_post.weight': (dim,),
            'ln_post.bias': (dim,)}
  for i in range(blocks):
    sizes = {'attn.query': (dim, dim), 'attn.key': (dim, dim), 'attn.value': (dim, dim),
             'attn.out': (dim, dim), 'attn_ln': (dim,), 'mlp.0': (4 * dim, dim), 'mlp.2': (dim, 4 * dim),
             'mlp_ln': (dim,)}
    for name, shape in sizes.items():
      shapes[f'blocks.{i}.{name}.weight'] = shape
      if name != 'attn.key':
        shapes[f'blocks.{i}.{name}.bias'] = shape[:1]
  rng = np.random.default_rng(0)
  state = {f'encoder.{k}': rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
  return state | {'decoder.blocks.0.attn.query.weight': np.ones((dim, dim), np.float32),
                  'decoder.positional_embedding': np.ones((448, dim), np.float32)}


def renamed(state, pairs):
  for old, new in pairs.items():
    state = {k.replace(old, new): v for k, v in state.items()}
  return state


def of_transformers(state, prefix='model.'):
  state = renamed(state, {
      'mlp_ln': 'final_layer_norm', 'attn_ln': 'self_attn_layer_norm', 'ln_post': 'layer_norm',
      'attn.query': 'self_attn.q_proj', 'attn.key': 'self_attn.k_proj', 'attn.value': 'self_attn.v_proj',
      'attn.out': 'self_attn.out_proj', 'blocks': 'layers', 'mlp.0': 'fc1', 'mlp.2': 'fc2',
      'positional_embedding': 'embed_positions.weight'})
  return {prefix + k: v for k, v in state.items()}


def of_ctranslate2(state):
  """CTranslate2's variables: queries, keys and values in one, settings as numbers."""
  state = dict(state)
  for i in range(BLOCKS):
    block = f'encoder.blocks.{i}.attn.'
    parts = [block + n for n in ('query', 'key', 'value')]
    state[block + 'all.weight'] = np.concatenate([state.pop(p + '.weight') for p in parts])
    query, value = (state.pop(p + '.bias') for p in parts[::2])
    state[block + 'all.bias'] = np.concatenate([query, 0 * query, value])
  for norm in ('attn_ln', 'mlp_ln', 'ln_post'):
    state = renamed(state, {f'{norm}.weight': f'{norm}.gamma', f'{norm}.bias': f'{norm}.beta'})
  state = renamed(state, {
      'attn_ln': 'self_attention.layer_norm', 'mlp_ln': 'ffn.layer_norm', 'ln_post': 'layer_norm',
      'attn.all': 'self_attention.linear_0', 'attn.out': 'self_attention.linear_1',
      'mlp.0': 'ffn.linear_0', 'mlp.2': 'ffn.linear_1', 'blocks.': 'layer_',
      'positional_embedding': 'position_encodings.encodings', '.': '/'})
  return state | {'encoder/num_heads': np.int16(1), 'decoder/scale_embeddings': np.int8(0)}


def string(text):
  data = text if isinstance(text, bytes) else text.encode()
  return struct.pack('<H', len(data) + 1) + data + b'\0'


CT2_KINDS = ('float32', 'int8', 'int16', 'int32', 'float16', 'bfloat16')


def ctranslate2_bytes(variables, aliases=None, version=6, architecture='WhisperSpec'):
  """A `model.bin`."""
  out = struct.pack('<I', version) + string(architecture) + struct.pack('<II', 3, len(variables))
  for name, x in variables.items():
    out += string(name) + struct.pack(f'<B{x.ndim}I', x.ndim, *x.shape)
    out += struct.pack('<BI', CT2_KINDS.index(x.dtype.name), x.nbytes) + x.tobytes()
  out += struct.pack('<I', len(aliases or {}))
  return out + b''.join(string(a) + string(b) for a, b in (aliases or {}).items())


def write(path, form, state):
  """Writes OpenAI's tensors in a form; returns nothing."""
  if form == 'openai':
    write_checkpoint(path, state, dumped('dims') + dumped({'n_mels': 80}), key='model_state_dict')
  elif form == 'safetensors':
    safetensors.numpy.save_file(of_transformers(state), path)
  elif form == 'encoder alone':
    encoder = {k: v for k, v in state.items() if k.startswith('encoder.')}
    safetensors.numpy.save_file({k.removeprefix('encoder.'): v
                                 for k, v in of_transformers(encoder, '').items()}, path)
  else:
    path.write_bytes(ctranslate2_bytes(of_ctranslate2(state)))


FORMS = ('openai', 'safetensors', 'encoder alone', 'ctranslate2')


@pytest.fixture
def paths(tmp_path):
  return tmp_path / 'model.bin', tmp_path / 'out.safetensors'


def run(paths, *flags):
  return cli.main(['teacher', 'convert', 'whisper', *map(str, paths), *flags])


@pytest.mark.parametrize('form', FORMS)
def test_convert(paths, capsys, form):
  """Every form gives the same parameters, in our shapes; what comes after the layer is left out."""
  state = published()
  write(paths[0], form, state)
  assert run(paths, '--layer', '2') == 0
  said = capsys.readouterr().out
  converted = load_params(paths[1])
  assert f'2 of 3 blocks, {sum(x.size for x in jax.tree.leaves(converted)) / 1e6:.1f} M' in said
  shapes = jax.eval_shape(functools.partial(small().init, method='features'), jax.random.key(0),
                          jnp.zeros((1, 640)))['params']
  assert jax.tree.map(jnp.shape, converted) == jax.tree.map(jnp.shape, shapes)
  kernel = converted['blocks_1']['qkv']['kernel']  # [dim, 3 * dim]
  for i, name in enumerate(('query', 'key', 'value')):
    part = slice(i * DIM, (i + 1) * DIM)
    block = f'encoder.blocks.1.attn.{name}'
    np.testing.assert_array_equal(kernel[:, part], state[block + '.weight'].T)
    np.testing.assert_array_equal(converted['blocks_1']['qkv']['bias'][part], state.get(block + '.bias', 0))
  np.testing.assert_array_equal(converted['conv2']['kernel'][2], state['encoder.conv2.weight'][:, :, 2].T)
  first = converted['blocks_0']
  np.testing.assert_array_equal(first['norm2']['scale'], state['encoder.blocks.0.mlp_ln.weight'])
  np.testing.assert_array_equal(first['fc2']['bias'], state['encoder.blocks.0.mlp.2.bias'])
  np.testing.assert_array_equal(converted['positions'], state['encoder.positional_embedding'])


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_convert_half_precision(paths, form, dtype):
  """Half-precision files come out as float32, with --float16 as float16."""
  state = {k: v.astype(dtype) for k, v in published().items()}
  write(paths[0], form, state)
  want = state['encoder.blocks.0.mlp.0.weight'].astype(np.float32).T
  for flags, size in ((('--layer=1',), 4), (('--layer=1', '--float16'), 2)):
    assert run(paths, *flags) == 0
    found = load_params(paths[1])
    np.testing.assert_allclose(found['blocks_0']['fc1']['kernel'], want, rtol=1e-3 * (size == 2),
                               atol=1e-7 * (size == 2))
    assert abs(paths[1].stat().st_size / (size * sum(v.size for v in jax.tree.leaves(found))) - 1) < 0.1


def test_quantised_and_equal_variables_of_ctranslate2(paths):
  """Integers by their scales, one a row or one in all; equal tensors are kept once, by two names."""
  variables = of_ctranslate2(published())
  rows, matrix = 'encoder/layer_0/ffn/linear_0/weight', 'encoder/layer_1/ffn/linear_0/weight'
  want = {name: variables[name].astype(np.float32) for name in (rows, matrix)}
  scale = (127 / np.abs(want[rows]).max(axis=1)).astype(np.float32)
  variables[rows], variables[rows + '_scale'] = np.rint(want[rows] * scale[:, None]).astype(np.int8), scale
  scale = np.float32(1024 / np.abs(want[matrix]).max())
  variables[matrix], variables[matrix + '_scale'] = np.rint(want[matrix] * scale).astype(np.int16), scale
  same = {'encoder/layer_1/ffn/layer_norm/beta': 'encoder/layer_0/ffn/layer_norm/beta',
          'encoder/layer_2/ffn/linear_0/weight': rows}
  for alias in same:
    del variables[alias]
  paths[0].write_bytes(ctranslate2_bytes(variables, same))
  assert run(paths) == 0
  found = load_params(paths[1])
  for block, name, steps in ((0, rows, 127), (1, matrix, 1024), (2, rows, 127)):
    error = np.abs(found[f'blocks_{block}']['fc1']['kernel'].T - want[name]).max()
    assert 0 < error <= 0.51 * np.abs(want[name]).max() / steps
  beta = variables['encoder/layer_0/ffn/layer_norm/beta']
  np.testing.assert_array_equal(found['blocks_1']['norm2']['bias'], beta)


def replaced(name, x):
  """CTranslate2's variables with one that is another."""
  return of_ctranslate2(published()) | {name: x}


def hostile():
  """Files that lie, and what is said of them."""
  good = ctranslate2_bytes(of_ctranslate2(published()))
  huge = struct.pack('<I', 6) + string('WhisperSpec') + struct.pack('<II', 3, 1) + string('encoder/x')
  yield b'', 'not a PyTorch checkpoint'
  yield b'RIFF....WAVE', 'not a PyTorch checkpoint'
  yield b'\n<!DOCTYPE html><html>', 'web page'
  yield struct.pack('<Q', 10 ** 12) + b'{"a":1}', 'not a readable safetensors file'
  yield struct.pack('<Q', 2) + b'{}', 'no encoder of Whisper'
  yield struct.pack('<Q', 7) + b'{"a":1}', 'not a readable safetensors file'
  for n in (8, 20, 30, 1000, len(good) // 2, len(good) - 1):
    yield good[:n], 'ends too early'
  yield good + b'x', '1 bytes more than it says'
  yield ctranslate2_bytes({}, version=7), 'version 7, should be 6'
  yield ctranslate2_bytes({}), 'no encoder of Whisper'
  yield ctranslate2_bytes({}, {'a': 'b'}), 'not a whole CTranslate2 model'
  yield ctranslate2_bytes({b'\xe9': np.zeros(1, np.float32)}), 'not a whole CTranslate2 model'
  yield huge + struct.pack('<B2IBI', 2, 2 ** 32 - 1, 2 ** 32 - 1, 0, 16) + bytes(16), 'has 16 bytes'
  yield huge + struct.pack('<BIBI', 1, 2 ** 30, 0, 2 ** 32 - 4), 'has 4294967292 bytes'
  yield huge + struct.pack('<BIBI', 1, 2 ** 30 - 1, 0, 2 ** 32 - 4), 'ends too early'
  yield huge + struct.pack('<BIBI', 1, 1, 9, 4) + bytes(4), 'not a whole CTranslate2 model'
  yield huge + b'\xff' + bytes(4 * 255) + struct.pack('<BI', 0, 0) + bytes(4), 'not a whole'
  key = 'encoder/layer_0/ffn/linear_0/weight'
  yield ctranslate2_bytes(replaced(key, np.ones((4 * DIM, DIM), np.int8)) | {
      key + '_scale': np.ones(10 ** 4, np.float32)}), '256 rows and 10000 scales'


@pytest.mark.parametrize('content, message', hostile())
def test_what_is_no_whisper(paths, capsys, content, message):
  paths[0].write_bytes(content)
  assert run(paths) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {paths[0]}: ') and error.count('\n') == 1 and message in error
  assert os.listdir(paths[0].parent) == ['model.bin']


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name, shape, message', [
    ('blocks.1.mlp.2.bias', None, 'absent'),
    ('positional_embedding', None, 'absent'),
    ('positional_embedding', (), 'is (), should be (1500, 64)'),
    ('conv1.weight', None, 'no encoder of Whisper'),
    ('conv1.weight', (DIM, 128, 3), 'should be (64, 80, 3)'),
    ('conv1.weight', (), '0 wide'),
    ('conv1.weight', (5, 80, 3), '5 wide'),
    ('blocks.0.attn.out.weight', (DIM,), 'is (64,), should be (64, 64)'),
    ('blocks.1.lora.weight', (DIM,), 'is not known')])
def test_what_is_no_whole_whisper(paths, capsys, form, name, shape, message):
  state = published()
  state.pop('encoder.' + name, None)
  if shape is not None:
    state['encoder.' + name] = np.ones(shape, np.float32)
  write(paths[0], form, state)
  assert run(paths) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1 and message in error
  assert not paths[1].exists()


@pytest.mark.parametrize('layer', [-1, 0, 4])
def test_layers_that_are_not_there(paths, capsys, layer):
  write(paths[0], 'ctranslate2', published())
  assert run(paths, f'--layer={layer}') == 2
  assert 'has 3 blocks' in capsys.readouterr().err
  assert cli.main(['teacher', 'convert', 'emotion2vec', *map(str, paths), '--layer=3']) == 2
  assert '--layer is for whisper' in capsys.readouterr().err


@pytest.mark.parametrize('index', range(4))
def test_malicious_checkpoints_are_not_run(paths, tmp_path, index):
  """A pickle may name any function to call; beside the weights it is neither run nor kept."""
  target = tmp_path / 'written'
  write_checkpoint(paths[0], published(), dumped('dims') + attacks(target)[index], 'model_state_dict')
  assert run(paths) == 0
  write_checkpoint(paths[0], {}, dumped('model_state_dict') + attacks(target)[index])
  assert run(paths) == 2
  assert not target.exists()


# As a teacher.


def test_a_teacher_of_the_configuration(tmp_path, capsys):
  """Converted, loaded as a run does, and asked: features of the codec's frames."""
  config = get_config()
  t = config.teacher
  t.kind, t.dim, t.layer, t.path = 'whisper_tiny', 384, 2, str(tmp_path / 'tiny.safetensors')
  config_lib.validate(config)
  write(tmp_path / 'model.bin', 'openai', published(384, 4))
  assert run((tmp_path / 'model.bin', t.path), '--layer=2') == 0
  flags = '--config.teacher.kind=whisper_tiny --config.teacher.dim=384 --config.teacher.layer=2'
  assert flags in capsys.readouterr().out
  frozen = {'teacher': weights.load_teacher(config, t.path)}
  assert teachers.emotion_context(config, frozen) is None
  found = jax.eval_shape(functools.partial(teachers.teacher_features, config), frozen, speech(2, 9))
  assert found.shape == (2, 9, 384)
  t.layer = 3
  with pytest.raises(UserError, match='blocks_2/fc1/bias is absent'):
    weights.load_teacher(config, t.path)


@pytest.mark.parametrize('fields, message', [
    ({'layer': 5}, 'teacher.layer=5, but whisper_tiny has blocks 1 to 4'),
    ({'layer': 0}, 'teacher.layer: Input should be greater than or equal to 1'),
    ({'dim': 512}, 'features of whisper_tiny are 384 wide')])
def test_what_does_not_fit_together(fields, message):
  config = get_config()
  config.teacher.update({'kind': 'whisper_tiny', 'dim': 384, 'path': 'x'} | fields)
  with pytest.raises(UserError, match=message):
    config_lib.validate(config)


def test_runs_from_before_there_were_layers(tmp_path):
  """They load, and go on, as if they had the layer of configs/base.py."""
  config = get_config()
  config_lib.save_config(tmp_path / 'new.json', config)
  plain = json.loads((tmp_path / 'new.json').read_text())
  del plain['teacher']['layer']
  (tmp_path / 'old.json').write_text(json.dumps(plain))
  old, new = (config_lib.load_config(tmp_path / f'{name}.json') for name in ('old', 'new'))
  assert old == new and new.teacher.layer == 3


def test_sinusoids():
  table = sinusoids(1500, 8)
  np.testing.assert_allclose(table[0], [0] * 4 + [1] * 4)
  np.testing.assert_allclose(table[3, [0, 3, 4, 7]], [np.sin(3), np.sin(3e-4), np.cos(3), 1], atol=1e-7)
