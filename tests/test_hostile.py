"""Files that are damaged, or made to do harm: one line each, and no more memory than the file has."""

import copy
import json
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from affectcodec_jax import config as config_lib
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.emotion.torch_checkpoint import read_checkpoint
from affectcodec_jax.inference import release, weights
from affectcodec_jax.models.params import load_params
from affectcodec_jax.tokens import emotion as token_emotion
from affectcodec_jax.tokens import shards

ROOT = pathlib.Path(__file__).parent.parent
DEEP = '[' * 100_000


@pytest.fixture
def codec(untrained, tmp_path):
  return pathlib.Path(shutil.copytree(untrained, tmp_path / 'codec'))


def leaves(value, at=()):
  """Where every field of nested dicts and lists is."""
  yield at
  items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, inner in items:
    yield from leaves(inner, (*at, key))


def replaced(value, at, new):
  if not at:
    return new
  value = copy.copy(value)
  value[at[0]] = replaced(value[at[0]], at[1:], new)
  return value


def test_wrong_types_in_codec_json(codec):
  """Dozens of 350 ended in KeyError, TypeError, ZeroDivisionError or ScopeParamShapeError."""
  card = json.loads((codec / release.CONFIG).read_text())
  tried = 0
  for at in leaves(card):
    for new in (None, 'x', -1, 0, 1.5, 10 ** 12, [], {}, True, [0], float('nan')):
      (codec / release.CONFIG).write_text(json.dumps(replaced(card, at, new)))
      tried += 1
      try:
        release.read_card(codec)
      except UserError as e:
        assert '\n' not in str(e) and str(codec) in str(e)
  assert tried > 350


@pytest.mark.parametrize('at, new, message', [
    (('config', 'model', 'strides', 0), 0, 'greater than or equal to 1, got 0'),
    (('config', 'model', 'num_stages'), 'x', 'valid integer'), (('config', 'model'), 3, 'config.model'),
    (('config', 'teacher', 'kind'), 'mine', 'teacher.kind'), (('fingerprint',), 'x', 'fingerprint'),
    (('config', 'model', 'acoustic_width'), 64, 'files are not those'), (('step',), None, 'step')])
def test_a_wrong_field_is_named(codec, at, new, message):
  card = json.loads((codec / release.CONFIG).read_text())
  (codec / release.CONFIG).write_text(json.dumps(replaced(card, at, new)))
  with pytest.raises(UserError, match=message):
    release.load(codec)


@pytest.mark.parametrize('name', ['.', 'a.b', '__class__'])
def test_a_name_that_no_field_can_have(codec, name):
  """Found by fuzzing: ValueError of ConfigDict."""
  card = json.loads((codec / release.CONFIG).read_text())
  card['config']['seed'] = {name: None}
  (codec / release.CONFIG).write_text(json.dumps(card))
  with pytest.raises(UserError, match='no field can have'):
    release.load(codec)


@pytest.mark.parametrize('text', [DEEP, '{"config": ' * 50_000, '', 'null', '[]', '\xff', '{"step": 1'])
def test_json_that_is_none(codec, tmp_path, text):
  for name, read in ((release.CONFIG, release.load), ('tokens.json', shards.read_index)):
    (codec / name).write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError):
      read(codec)
  (tmp_path / 'config.json').write_bytes(text.encode('latin-1'))
  with pytest.raises(UserError):
    config_lib.load_config(tmp_path / 'config.json')


def test_a_fingerprint_that_fits_other_shapes(codec):
  """Files made to fit one another, but no network: it was ScopeParamShapeError when first used."""
  card = json.loads((codec / release.CONFIG).read_text())
  card['config']['model']['adapter_kernel'] = 7
  params = load_params(codec / release.CODEC)
  frozen = load_params(codec / 'teacher.safetensors')
  card['fingerprint'] = weights.fingerprint(card['config']['model'], params, {'teacher': frozen}).hex()
  (codec / release.CONFIG).write_text(json.dumps(card))
  with pytest.raises(UserError, match='not the codec that its configuration describes'):
    release.load(codec)


def tensors_file(path, tensors):
  """A safetensors file of {name: (type, shape, bytes)}."""
  header, data = {}, b''
  for name, (kind, shape, content) in tensors.items():
    header[name] = {'dtype': kind, 'shape': shape, 'data_offsets': [len(data), len(data) + len(content)]}
    data += content
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)
  return path


@pytest.mark.parametrize('tensors, message', [
    ({'a': ('F8_E4M3', [4], bytes(4))}, 'not a readable safetensors file|not'),
    ({'a': ('F32', [1], bytes(4)), 'a/b': ('F32', [1], bytes(4))}, 'clash'),
    ({'a//b': ('F32', [1], bytes(4))}, 'clash'), ({'': ('F32', [1], bytes(4))}, 'clash'),
    ({'a': ('F32', [1], np.float32('nan').tobytes())}, 'NaN or infinite'),
    ({'a': ('F16', [1], np.float16('inf').tobytes())}, 'NaN or infinite'),
    ({'a': ('F32', [10 ** 9], bytes(4))}, 'not a readable safetensors file')])
def test_weights_that_are_none(tmp_path, tensors, message):
  """All NaN encoded as if nothing were wrong."""
  path = tensors_file(tmp_path / 'a.safetensors', tensors)
  try:
    load_params(path)
  except UserError as e:
    assert any(m in str(e) for m in message.split('|'))
  else:
    assert 'F8' in str(tensors)  # a newer library reads it


def test_a_missing_tensor_is_named(codec):
  for name in (release.CODEC, 'teacher.safetensors'):
    flat = safetensors.numpy.load_file(codec / name)
    missing = sorted(flat)[0]
    del flat[missing]
    (codec / name).write_bytes(safetensors.numpy.save(flat))
  with pytest.raises(UserError):
    release.load(codec)


@pytest.mark.parametrize('levels', [
    '{"emotion": [2], "acoustic": [0]}', DEEP, '{"emotion": [1000000000]}', '[]',
    '{"emotion": [2, 2, 2], "acoustic": ["x"]}'])
def test_a_predictor_that_is_none(tmp_path, levels):
  about = {'emotions': ' '.join(token_emotion.EMOTIONS), 'levels': levels, 'fingerprint': '00' * 8}
  for name in ('2/both', '-1/both', '100000000/both', 'x', '2/x'):
    (tmp_path / 'p').write_bytes(safetensors.numpy.save({name: np.zeros((3, 8), np.float32)}, about))
    with pytest.raises(UserError, match='not a predictor'):
      token_emotion.load(tmp_path / 'p')


def checkpoint(path, size, stride, floats=4, times=1, compression=zipfile.ZIP_STORED):
  """A PyTorch checkpoint with tensors of this size over one storage, written by hand."""
  def p(value):
    return pickle.dumps(value, 2)[2:-1]

  storage = (b'(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu' + p(floats) + b'tQ')
  tensor = (b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + p(0) + p(tuple(size)) + p(tuple(stride))
            + b'\x89}tR')
  items = b''.join(b'X\x02\0\0\0' + f'{i:02d}'.encode() + tensor for i in range(times))
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('a/data.pkl', b'\x80\x02}(' + items + b'u.')
    archive.writestr('a/data/0', np.arange(floats, dtype=np.float32).tobytes())
  return path


def test_a_sound_checkpoint_is_read(tmp_path):
  tensor = read_checkpoint(checkpoint(tmp_path / 'a.pt', (2, 2), (2, 1)))['00']
  np.testing.assert_array_equal(tensor, [[0, 1], [2, 3]])


@pytest.mark.parametrize('size, stride, times', [
    ((10 ** 9,), (0,), 1), ((10 ** 5, 10 ** 5), (0, 0), 1), ((1 << 40,), (0,), 1), ((4, 500), (1, 0), 90)])
def test_a_small_checkpoint_asks_for_no_memory(tmp_path, size, stride, times):
  """500 bytes with stride 0 asked for any amount."""
  path = checkpoint(tmp_path / 'a.pt', size, stride, times=times)
  with pytest.raises(UserError, match='larger than its data'):
    read_checkpoint(path)


def test_a_pickle_asks_for_no_memory(tmp_path):
  """Found by fuzzing: a place of high number for a value takes 16 bytes for every number before it."""
  with zipfile.ZipFile(tmp_path / 'a.pt', 'w') as archive:
    archive.writestr('a/data.pkl', b'\x80\x02}r\xff\xff\xff\x7f.')
  with pytest.raises(UserError, match='damaged .ValueError: a place for 2147483647 values'):
    read_checkpoint(tmp_path / 'a.pt')


def test_a_compressed_checkpoint_is_refused(tmp_path):
  path = checkpoint(tmp_path / 'a.pt', (10 ** 6,), (1,), 10 ** 6, compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(UserError, match='compressed'):
    read_checkpoint(path)


def test_the_file_server_outlives_bad_requests():
  """`GET /%` ended it."""
  if not shutil.which('node'):
    pytest.skip('needs node')
  code = f"import {{ serve }} from '{ROOT}/web/serve.js'; console.log((await serve(0)).url)"
  command = ['node', '--input-type=module', '-e', code]  # of itself it wants a dist/ to serve
  server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    url = server.stdout.readline().strip()
    for path in ('%', '%ff', '..%2f..%2fserve.js', '//', '%00', 'a' * 5000, 'none'):
      with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url + path, timeout=20)
      assert caught.value.code == 404 and server.poll() is None
  finally:
    server.kill()


def test_after_a_fork_use_spawn(untrained):
  """A forked child of a process that uses JAX may hang; docs/robustness.md says to spawn. That works."""
  code = (f'import multiprocessing, numpy as np, affectcodec_jax\n'
          f'codec = affectcodec_jax.load({str(untrained)!r})\n'
          'codec.encode(np.zeros(3200), 16000)\n'
          'from tests.test_hostile import encode_in_child\n'
          "if __name__ == '__main__':\n"
          "  with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
          f'    print(pool.apply_async(encode_in_child, ({str(untrained)!r},)).get(300))\n')
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=600)
  assert done.stdout.strip() == '(10, 3)', done.stderr


def encode_in_child(folder):
  import affectcodec_jax
  return affectcodec_jax.load(folder).encode(np.zeros(3200), 16000).shape
