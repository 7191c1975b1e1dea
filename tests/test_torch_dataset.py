"""examples/torch_dataset.py where neither JAX nor Flax can be imported: reading, and sound by ONNX."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.test_examples import write_shards

ROOT = pathlib.Path(__file__).parents[1]

SCRIPT = '''
import json
import sys

import numpy as np

from affectcodec_jax.tokens import lm
from examples import torch_dataset

if __name__ == '__main__':
  folder, out, decoder = sys.argv[1:]
  vocabulary = lm.codes_vocabulary(2)
  batches = torch_dataset.loader(folder, vocabulary, batch_size=4, split='train', workers=2)
  epochs = []
  for _ in range(2):
    epochs.append([])
    for ids, mask in batches:
      assert ids.shape[:2] == mask.shape and str(ids.dtype) == 'torch.int64'
      assert (ids[~mask] == vocabulary.pad).all()
      clips = lm.unpad(ids.numpy(), mask.numpy())
      epochs[-1] += [torch_dataset.to_codes(clip, vocabulary).tolist() for clip in clips]
  windows = list(torch_dataset.loader(folder, vocabulary, batch_size=6, frames=20, split='train'))
  result = {'epochs': epochs, 'windows': [list(ids.shape) for ids, _ in windows],
            'window': torch_dataset.to_codes(windows[0][0][0], vocabulary).tolist()}
  if decoder:
    result['audio'] = torch_dataset.make_decoder(decoder)(np.array(epochs[0][0])).tolist()
  json.dump(result, open(out, 'w'))
  assert not {'jax', 'flax'} & set(sys.modules)
'''


@pytest.fixture(scope='module')
def without_jax(tmp_path_factory):
  """A function of arguments of `SCRIPT` to its result, in processes for which JAX is not installed."""
  pytest.importorskip('torch')
  folder = tmp_path_factory.mktemp('blocked')
  for name in ('jax', 'jaxlib', 'flax'):
    (folder / f'{name}.py').write_text(f'raise ImportError("{name} is blocked")')
  (folder / 'script.py').write_text(SCRIPT)

  def run(tokens, decoder=''):
    out = folder / 'out.json'
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run([sys.executable, folder / 'script.py', tokens, out, decoder], cwd=folder,
                          env=os.environ | {'PYTHONPATH': path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())

  return run


def test_shards_are_read_and_decoded_without_jax(without_jax, tmp_path):
  """By two spawned workers, each clip once an epoch, in two orders; sound is that of the codec."""
  codes = write_shards(tmp_path, ['arrayrecord'])
  wanted = sorted(c.tolist() for i, c in enumerate(codes.values()) if i % 4 < 2)  # split 'train'
  decoder, codec = '', None
  if all(map(importlib.util.find_spec, ('jax2onnx', 'onnx_ir', 'onnxruntime'))):
    from affectcodec_jax.inference import export
    from configs import lite
    from tests.test_export import codec as make_codec
    codec = make_codec(lite)
    decoder = tmp_path / 'decoder.onnx'
    write, _ = export.WRITERS['onnx']
    decoder.write_bytes(write(*export.programs(codec)['decoder']))
  result = without_jax(tmp_path, decoder)
  first, second = result['epochs']
  assert sorted(first) == sorted(second) == wanted and first != second
  assert result['windows'] == [[6, 23, 4]]
  found = [(c, s) for c in wanted for s in range(len(c) - 19) if c[s:s + 20] == result['window']]
  assert found  # a part of a clip, as it is
  if codec is None:
    pytest.skip('read, but not decoded: jax2onnx, onnx_ir or onnxruntime is not installed')
  audio = codec.decode(np.array(first[0], np.int32))
  np.testing.assert_allclose(result['audio'], audio, atol=export.AUDIO_TOLERANCE)


def test_a_seed_gives_the_same_batches(tmp_path):
  torch = pytest.importorskip('torch')
  from affectcodec_jax.tokens import lm
  from examples import torch_dataset
  write_shards(tmp_path, ['arrayrecord'])

  def batches(seed):
    torch.manual_seed(0 if seed else 1)  # what else the program draws does not matter
    loader = torch_dataset.loader(tmp_path, lm.codes_vocabulary(2), 4, frames=20, seed=seed)
    return [ids.tolist() for _ in range(2) for ids, _ in loader]

  one = batches(7)
  torch.rand(3)
  assert batches(7) == one != batches(8)
  assert one[:len(one) // 2] != one[len(one) // 2:]


def test_a_file_that_is_no_decoder_gets_one_line(tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('onnxruntime')
  from affectcodec_jax.common.errors import UserError
  from examples import torch_dataset
  (tmp_path / 'bad.onnx').write_text('no')
  for name in ('bad.onnx', 'none.onnx'):
    with pytest.raises(UserError, match=f'{name}: not a decoder.onnx'):
      torch_dataset.make_decoder(tmp_path / name)


def test_a_missing_split_gets_one_line(tmp_path):
  pytest.importorskip('torch')
  from affectcodec_jax.common.errors import UserError
  from affectcodec_jax.tokens import lm
  from examples import torch_dataset
  write_shards(tmp_path, ['arrayrecord'])
  with pytest.raises(UserError, match='no clip of split none'):
    torch_dataset.TokenDataset(tmp_path, lm.codes_vocabulary(2), split='none')
