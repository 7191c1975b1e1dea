"""emotion2vec at a small size, and the converter on hand-built checkpoints; parity is tested elsewhere."""

import functools
import io
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from affectcodec_jax import __main__ as cli
from affectcodec_jax.emotion.emotion2vec import CONVS, Emotion2Vec, alibi_slopes, normalise
from affectcodec_jax.emotion.torch_checkpoint import read_checkpoint
from affectcodec_jax.models.params import load_params
from tests.conftest import check_gradient_by_audio

DIM, HEADS = 48, 3  # three heads: no power of two
AUDIO = 'modality_encoders.AUDIO.'
small = functools.partial(Emotion2Vec, DIM, HEADS, 1, 1, num_classes=9)


def speech(batch, hops, seed=0):
  """Noise with an offset, `[batch, hops * 320]`."""
  return (np.random.default_rng(seed).normal(size=(batch, hops * 320)) / 10 + 0.02).astype(np.float32)


@pytest.fixture(scope='module')
def params():
  fresh = jax.jit(small().init)(jax.random.key(0), speech(1, 4))['params']
  # Away from the initial values, which hide what biases and slopes do.
  leaves, tree = jax.tree.flatten(fresh)
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def features(params, audio, mask=None, **fields):
  return small(**fields).apply({'params': params}, audio, mask, method='features')


@pytest.mark.parametrize('hops', [1, 2, 3, 10, 11, 50, 500])
def test_frames_are_in_step_with_the_codec(params, hops):
  """N / 320 frames for each N; the published model has one fewer, and none of a single hop."""
  audio = jax.ShapeDtypeStruct((2, hops * 320), jnp.float32)
  ours, logits = jax.eval_shape(lambda x: small().apply({'params': params}, x), audio)
  assert ours.shape == (2, hops, DIM) and ours.dtype == jnp.float32 and logits.shape == (2, 9)
  if hops > 1:
    theirs = jax.eval_shape(
        lambda x: small().apply({'params': params}, x, method='published_features'), audio)
    assert theirs.shape == (2, (hops * 320 - 400) // 320 + 1, DIM)
    assert theirs.shape[1] == hops - 1


def test_frames_are_centred_on_the_codecs(params):
  """The convolutions see 400 samples around a frame's 320: 40 more on either side, no more."""
  def local(audio):
    """What enters the transformer, before positions."""
    _, state = small().apply({'params': params}, audio, method='features',
                             capture_intermediates=lambda m, _: m.name == 'project')
    return state['intermediates']['project']['__call__'][0][0]  # [T, dim]

  audio = speech(1, 5)
  # Normalisation couples everything to everything: the gradient is taken behind it.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('affectcodec_jax.emotion.emotion2vec.normalise', lambda audio, mask: audio)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(local(x)[2]))))(audio)[0]
  touched = np.flatnonzero(gradient)
  assert (touched.min(), touched.max()) == (2 * 320 - 40, 3 * 320 + 39)


def test_padding_does_not_leak(params):
  """A batch of unequal lengths gives what each clip gives by itself, whatever the padding holds.

  Tolerance 1e-5 of features of order 1: sums of other lengths, in another order.
  """
  audio, lengths = speech(3, 7), (7, 3, 0)
  mask = np.arange(7) < np.array(lengths)[:, None]
  audio = np.where(np.repeat(mask, 320, axis=1), audio, [[0], [7], [np.nan]]).astype(np.float32)
  run = jax.jit(lambda x, mask: small().apply({'params': params}, x, mask))
  batch, logits = run(audio, mask)
  for i, n in enumerate(lengths[:2]):
    alone, single = run(audio[i:i + 1, :n * 320], None)
    np.testing.assert_allclose(batch[i, :n], alone[0], atol=1e-5)
    np.testing.assert_allclose(logits[i], single[0], atol=1e-5)
  assert np.isfinite(batch).all() and np.isfinite(logits).all()  # of nothing but padding too


def test_gradient_by_the_audio(params):
  """Alive in each valid sample, zero in padding, right along its own direction; the same with remat."""
  mask = np.arange(5)[None] < np.array([[5], [3]])
  audio = speech(2, 5)
  weight = np.random.default_rng(3).normal(size=(2, 5, DIM)) * mask[..., None]
  check_gradient_by_audio(features, params, audio, mask, weight, step=1e-3)
  shapes = [jax.tree.map(jnp.shape, jax.eval_shape(small(remat=r).init, jax.random.key(0), audio))
            for r in (False, True)]
  assert shapes[0] == shapes[1]  # one set of weights for both


def test_bfloat16_is_close(params):
  """bfloat16 has 8 bits: features of order 1 within a few per cent in the mean. Output is float32."""
  audio = speech(1, 5)
  exact = jax.jit(features)(params, audio)
  rough = jax.jit(functools.partial(features, dtype=jnp.bfloat16))(params, audio)
  assert rough.dtype == jnp.float32
  error = jnp.sqrt(jnp.mean(jnp.square(exact - rough)) / jnp.mean(jnp.square(exact)))
  assert 0 < error < 0.05
  fresh = jax.eval_shape(small(dtype=jnp.bfloat16).init, jax.random.key(0), audio)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(fresh))


def test_level_and_offset_do_not_matter():
  """Only where the variance comes near the epsilon, 1e-5, is a clip damped."""
  audio = speech(1, 4)
  np.testing.assert_allclose(normalise(50 * audio + 3), normalise(50 * audio), atol=1e-4)
  assert float(jnp.std(normalise(1e-6 * audio))) < 1e-3


def test_alibi_slopes():
  np.testing.assert_allclose(alibi_slopes(4), [2 ** -2, 2 ** -4, 2 ** -6, 2 ** -8])
  np.testing.assert_allclose(alibi_slopes(3), [2 ** -4, 2 ** -8, 2 ** -2])
  np.testing.assert_allclose(alibi_slopes(12)[:8], [2.0 ** -i for i in range(1, 9)])
  np.testing.assert_allclose(alibi_slopes(12)[8:], [2 ** -(i + 0.5) for i in range(4)])


# Checkpoints, built by hand: the pickle of a tensor calls `torch._utils._rebuild_tensor_v2`.

KINDS = {np.dtype(np.float32): 'FloatStorage', np.dtype(np.float16): 'HalfStorage',
         np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage'}


def dumped(x):
  """The opcodes that push a plain object."""
  return pickle.dumps(x, 2)[2:-1]


def tensor(key, kind, count, size, stride, offset=0):
  """The opcodes that push a tensor: a view of the storage in `data/key`."""
  storage = (b'(' + dumped('storage') + f'ctorch\n{kind}\n'.encode() + dumped(key) + dumped('cpu')
             + dumped(count) + b'tQ')
  return (b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + dumped(offset) + dumped(size) + dumped(stride)
          + b'\x89ccollections\nOrderedDict\n)RtR')


def whole(key, array):
  """The same of a whole array in C order."""
  stride = tuple(s // array.itemsize for s in array.strides)
  return tensor(key, KINDS[array.dtype], array.size, array.shape, stride)


def write_checkpoint(path, state, more=b'', key='model'):
  """{key: state} as PyTorch writes it; `more` pushes further keys and values."""
  items = b''.join(dumped(k) + whole(str(i), v) for i, (k, v) in enumerate(state.items()))
  data = b'\x80\x02}(' + dumped(key) + b'ccollections\nOrderedDict\n)R(' + items + b'u' + more + b'u.'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', data)
    for i, v in enumerate(state.values()):
      archive.writestr(f'archive/data/{i}', v.tobytes())


def published(dim=DIM, heads=HEADS, classes=9):
  """Random tensors with the names and shapes of a published checkpoint."""
  shapes = {'alibi_scale': (1, 1, heads, 1, 1), 'extra_tokens': (1, 10, dim),
            'context_encoder.norm': (dim,), 'project_features.1': (512,), 'project_features.2': (dim, 512)}
  for i, (taps, _) in enumerate(CONVS):
    shapes[f'local_encoder.conv_layers.{i}.0.weight'] = (512, 512 if i else 1, taps)
    shapes[f'local_encoder.conv_layers.{i}.2.1'] = (512,)
  for i in range(1, 6):
    shapes[f'relative_positional_encoder.{i}.0'] = (dim, dim // 16, 19)
  shapes = {AUDIO + k: v for k, v in shapes.items()}
  prenet = [f'{AUDIO}context_encoder.blocks.{i}' for i in range(4)]
  for block in [*prenet, *(f'blocks.{i}' for i in range(8))]:
    shapes |= {f'{block}.norm1': (dim,), f'{block}.norm2': (dim,), f'{block}.attn.qkv': (3 * dim, dim),
               f'{block}.attn.proj': (dim, dim), f'{block}.mlp.fc1': (4 * dim, dim),
               f'{block}.mlp.fc2': (dim, 4 * dim)}
  if classes:
    shapes['proj'] = (classes, dim)
  rng = np.random.default_rng(0)
  state = {}
  for name, shape in shapes.items():
    bare = name.endswith(('weight', 'alibi_scale', 'extra_tokens'))
    state[name if bare else name + '.weight'] = rng.normal(size=shape).astype(np.float32)
    if not bare:
      state[name + '.bias'] = rng.normal(size=shape[:1]).astype(np.float32)
  return state


@pytest.fixture
def paths(tmp_path):
  return tmp_path / 'model.pt', tmp_path / 'out.safetensors'


def run(paths, *flags):
  return cli.main(['teacher', 'convert', 'emotion2vec', *map(str, paths), *flags])


@pytest.mark.parametrize('prefix, classes', [('', 0), ('d2v_model.', 9)])
def test_convert(paths, capsys, prefix, classes):
  """Both published forms: every tensor arrives, in our shapes, and pre-training's are left out."""
  state = published(classes=classes)
  saved = {(k if k.startswith('proj.') else prefix + k): v for k, v in state.items()}
  decoder = prefix + AUDIO + 'decoder.proj.'
  saved |= {k: np.ones(3, np.float32) for k in ('_ema', decoder + 'weight', decoder + 'bias')}
  unknown = b'cfairseq.dataclass\nConfig\n)\x81' + dumped({'lr': 1}) + b'b'  # an object with its state
  write_checkpoint(paths[0], saved, more=dumped('cfg') + unknown)
  assert run(paths) == 0
  said = capsys.readouterr().out
  assert f'left out: cfg, _ema, {AUDIO}decoder (2)' in said
  assert f'{sum(v.size for v in state.values()) / 1e6:.1f} M parameters' in said
  converted = load_params(paths[1])
  network = Emotion2Vec(DIM, HEADS, num_classes=classes)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 640)))['params']
  assert jax.tree.map(jnp.shape, converted) == jax.tree.map(jnp.shape, shapes)
  last = state[AUDIO + 'context_encoder.blocks.3.mlp.fc1.weight']
  np.testing.assert_array_equal(converted['blocks_3']['fc1']['kernel'], last.T)
  np.testing.assert_array_equal(converted['blocks_11']['norm2']['bias'], state['blocks.7.norm2.bias'])
  scale = state[AUDIO + 'alibi_scale'].ravel()
  np.testing.assert_array_equal(converted['alibi_scale'], np.tile(scale, (12, 1)))


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_convert_half_precision(paths, dtype):
  """Half-precision checkpoints come out as float32, with --float16 as float16."""
  state = {k: v.astype(dtype) for k, v in published().items()}
  write_checkpoint(paths[0], state)
  want = state['blocks.0.attn.qkv.weight'].astype(np.float32).T
  for flags, size in (((), 4), (('--float16',), 2)):
    assert run(paths, *flags) == 0
    found = load_params(paths[1])['blocks_4']['qkv']['kernel']
    np.testing.assert_allclose(found, want, rtol=1e-3 * (size == 2), atol=1e-7 * (size == 2))
    assert abs(paths[1].stat().st_size / (size * sum(v.size for v in state.values())) - 1) < 0.1


class Attack:
  """Writes a file where it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path(self.path),)


def attacks(target):
  """Pickles that write `target` if they are believed."""
  call = f"open({str(target)!r}, 'w').close()"
  return [dumped(Attack(target)),
          b'cbuiltins\nexec\n(' + dumped(call) + b'tR',
          b'cos\nsystem\n(' + dumped(f'touch {target}') + b'tR',
          # a function that only calls bring forth
          b'cbuiltins\ngetattr\n(cimportlib\nimport_module\n(' + dumped('os') + b'tR' + dumped('system')
          + b'tR(' + dumped(f'touch {target}') + b'tR']


@pytest.mark.parametrize('index', range(4))
def test_malicious_checkpoints_are_not_run(paths, tmp_path, index):
  """A pickle may name any function to call; as an entry beside the weights it is neither run nor kept."""
  target = tmp_path / 'written'
  attack = attacks(target)[index]
  pickle.loads(b'\x80\x02' + attack + b'.')
  assert target.exists()  # the attack is real
  target.unlink()
  write_checkpoint(paths[0], published(), more=dumped('cfg') + attack)
  assert run(paths) == 0
  assert not target.exists()
  write_checkpoint(paths[0], {}, more=dumped('model') + attack)
  assert run(paths) == 2
  assert not target.exists()


def test_nothing_named_is_imported(paths):
  """A module with effects of its own is not even loaded."""
  named = dumped('cfg') + b'cantigravity\nfly\n)R' + dumped('x') + b'cthis\ns\n'
  write_checkpoint(paths[0], {}, more=named)
  assert set(read_checkpoint(paths[0])) == {'model', 'cfg', 'x'}
  assert not {'this', 'antigravity'} & set(sys.modules)


def write_tensors(path, tensors):
  """{'model': tensors by their opcodes}, all of one storage of 0, 1, …, 23."""
  items = b''.join(dumped(k) + v for k, v in tensors.items())
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02}(' + dumped('model') + b'}(' + items + b'uu.')
    archive.writestr('archive/data/0', np.arange(24, dtype=np.float32).tobytes())


def test_views_share_their_data(paths):
  """A matrix, its transpose, and every other column of a part of it, all of one storage."""
  view = functools.partial(tensor, '0', 'FloatStorage', 24)
  write_tensors(paths[0], {
      'a': view((4, 6), (6, 1)), 't': view((6, 4), (1, 6)), 'none': view((0, 5), (5, 1)),
      'part': view((2, 3), (6, 2), 7), 'one': view((), (), 23)})
  state = read_checkpoint(paths[0])['model']
  a = np.arange(24).reshape(4, 6)
  for name, want in {'a': a, 't': a.T, 'none': a[:0, :5], 'part': a[1:3, 1::2], 'one': a[3, 5]}.items():
    np.testing.assert_array_equal(state[name], want)


@pytest.mark.parametrize('count, size, stride, offset', [
    (24, (2, 13), (13, 1), 0), (24, (4, 6), (6, 1), 1), (24, (2,), (-1,), 3), (24, (3,), (1, 1), 0),
    (24, (-1,), (1,), 0), (24, (1,), (1,), -1), (24, (1,), (1,), 24), (99, (2, 3), (3, 1), 0),
    (24, (2, 2), (2 ** 62, 1), 0)])
def test_tensors_stay_inside_their_data(paths, capsys, count, size, stride, offset):
  """Sizes and strides come from the file: they must not reach into other memory."""
  write_tensors(paths[0], {'t': tensor('0', 'FloatStorage', count, size, stride, offset)})
  assert run(paths) == 2
  assert 'damaged' in capsys.readouterr().err


def zipped(name, data):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr(name, data)
  return buffer.getvalue()


@pytest.mark.parametrize('content, message', [
    (None, 'no such file'),
    (b'', 'not a PyTorch checkpoint'),
    (b'RIFF....WAVE', 'not a PyTorch checkpoint'),
    (b'\n<!DOCTYPE html><html>', 'web page'),
    (pickle.dumps(0x1950a86a20f9469cfc6c, 2), 'PyTorch before 1.6'),
    (zipped('a.txt', b'x'), 'not a PyTorch checkpoint'),
    (zipped('archive/data.pkl', b'\x80\x02}'), 'damaged'),
    (zipped('archive/data.pkl', b'garbage'), 'damaged'),
    (zipped('archive/data.pkl', pickle.dumps([1])), 'no emotion2vec'),
    (zipped('archive/data.pkl', pickle.dumps({'model': {'x': 1}})), 'no emotion2vec')])
def test_what_is_no_checkpoint(paths, capsys, content, message):
  if content is not None:
    paths[0].write_bytes(content)
  assert run(paths) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {paths[0]}: ') and error.count('\n') == 1 and message in error
  assert os.listdir(paths[0].parent) == ([] if content is None else ['model.pt'])


def test_cut_short(paths, capsys):
  write_checkpoint(paths[0], published())
  paths[0].write_bytes(paths[0].read_bytes()[:-1000])
  assert run(paths) == 2
  assert 'cut short' in capsys.readouterr().err
  assert not paths[1].exists()


@pytest.mark.parametrize('name, shape, message', [
    ('blocks.7.mlp.fc2.bias', None, 'blocks.7.mlp.fc2.bias is absent'),
    (AUDIO + 'extra_tokens', None, 'extra_tokens is absent'),
    (AUDIO + 'alibi_scale', None, 'alibi_scale is absent'),
    ('blocks.8.norm1.weight', (DIM,), 'blocks.8.norm1.weight is not known'),
    ('norm.weight', (DIM,), 'norm.weight is not known'),
    ('blocks.3.norm1.weight', (5,), 'blocks.3.norm1.weight is (5,), should be (48,)'),
    (AUDIO + 'alibi_scale', (5, 1, 3, 1, 1), 'alibi_scale is (5, 1, 3, 1, 1)'),
    (AUDIO + 'alibi_scale', (), 'alibi_scale is ()'),
    (AUDIO + 'alibi_scale', (1, 1, 7, 1, 1), 'alibi_scale is (1, 1, 7, 1, 1)'),
    (AUDIO + 'extra_tokens', (), 'emotion2vec')])
def test_what_is_no_emotion2vec(paths, capsys, name, shape, message):
  state = published()
  state.pop(name, None)
  if shape is not None:
    state[name] = np.ones(shape, np.float32)
  write_checkpoint(paths[0], state)
  assert run(paths) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1 and message in error
  assert not paths[1].exists()


def test_output_that_cannot_be_written(paths, capsys):
  write_checkpoint(paths[0], published())
  assert run((paths[0], paths[0])) == 2
  assert 'same file' in capsys.readouterr().err
  assert run((paths[0], paths[0].parent / 'none' / 'out.safetensors')) == 2
  assert 'no such folder' in capsys.readouterr().err


def test_help_needs_no_heavy_imports():
  code = ('import sys; from affectcodec_jax import __main__ as cli\n'
          'try: cli.main(["teacher", "convert", "--help"])\n'
          'except SystemExit: assert not {"jax", "numpy", "torch"} & set(sys.modules)')
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
  assert '{emotion2vec,whisper} CKPT OUT' in ' '.join(out.split())
