"""Readers against files that nobody wrote: what comes out is a value or one line, and nothing else.

Short by default; AFFECTCODEC_FUZZ=5000 python -m pytest tests/test_fuzz.py tries 5000 files of each kind.
"""

import io
import json
import os
import pathlib
import zipfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
import numpy as np
import pytest
import safetensors.numpy
import soundfile

from affectcodec_jax import config as config_lib
from affectcodec_jax.audio import read_audio
from affectcodec_jax.common import packaged, schemas
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data.folder import FolderSource
from affectcodec_jax.emotion.emotion2vec_files import convert_state, find_state
from affectcodec_jax.emotion.torch_checkpoint import read_checkpoint
from affectcodec_jax.inference import release
from affectcodec_jax.models.params import load_params
from affectcodec_jax.tokens import afc, shards
from tests.test_hostile import checkpoint

EXAMPLES = int(os.environ.get('AFFECTCODEC_FUZZ', 25))
fuzz = settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES <= 25,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

_edits = st.lists(st.tuples(st.sampled_from(['flip', 'cut', 'insert', 'repeat', 'zero']), st.floats(0, 1),
                            st.integers(1, 64), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)


def edited(data, edits):
  """`data` with bytes changed, cut out, put in, repeated or zeroed, at shares of its length."""
  data = bytearray(data)
  for kind, share, length, new in edits:
    at = int(share * max(len(data) - 1, 0))
    piece = data[at:at + length]
    data[at:at + length] = {'flip': bytes(b ^ new[0] for b in piece), 'cut': b'', 'insert': new + piece,
                            'repeat': piece * 3, 'zero': bytes(len(piece))}[kind]
  return bytes(data)


def survives(read, path, data):
  """Whether `read(path)` takes the data; a `UserError` of one line is as good."""
  path.write_bytes(data)
  try:
    read(path)
    return True
  except UserError as e:
    assert '\n' not in str(e) and str(e)
    return False


def _sound(kind, subtype=None):
  file = io.BytesIO()
  audio = 0.3 * np.sin(np.arange(4000) * 0.1)
  soundfile.write(file, np.stack([audio, audio], 1), 16000, subtype, format=kind)
  return file.getvalue()


SOUNDS = {name: _sound(*kind) for name, kind in {
    'wav': ('WAV',), 'float': ('WAV', 'FLOAT'), 'flac': ('FLAC',), 'ogg': ('OGG',), 'opus': ('OGG', 'OPUS'),
    'mp3': ('MP3',), 'aiff': ('AIFF',), 'au': ('AU',), 'w64': ('W64',)}.items()}


@pytest.mark.parametrize('kind', SOUNDS)
@fuzz
@given(edits=_edits)
def test_audio(tmp_path, kind, edits):
  survives(read_audio, tmp_path / 'a.wav', edited(SOUNDS[kind], edits))
  survives(lambda p: read_audio(p, 0.1, 0.1), tmp_path / 'a.wav', edited(SOUNDS[kind] * 2, edits))


@fuzz
@given(data=st.binary(max_size=400), start=st.sampled_from([
    b'', b'RIFF\0\0\0\0WAVEfmt ', b'OggS\0\2', b'fLaC', b'ID3', b'\xff\xfb', b'\0\0\0\x18ftypM4A ', b'FORM',
    b'#!AMR\n']))
def test_audio_of_nothing(tmp_path, data, start):
  survives(read_audio, tmp_path / 'a', start + data)


@pytest.mark.parametrize('digits', [(), (3, 4, 4, 4)])
@fuzz
@given(edits=_edits)
def test_token_files(tmp_path, digits, edits):
  codes = np.random.default_rng(0).integers(0, 2 ** 15, (30, 4)).astype(np.int32)
  data = afc.pack(afc.Tokens(codes, 9600, -3.0, b'12345678', digit_bits=digits))
  damaged = edited(data, edits)
  assert not survives(afc.read_tokens, tmp_path / 'a.afc', damaged) or damaged == data


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8)


@fuzz
@given(data=st.data())
def test_codec_folders(tmp_path, data):
  """Any field of codec.json by any value; any bytes of it and of the weights changed."""
  plain = json.loads((packaged.FOLDER / release.CONFIG).read_text())
  at, value = [], plain
  while isinstance(value, dict) and value and data.draw(st.booleans() if at else st.just(True)):
    at.append(data.draw(st.sampled_from(sorted(value))))
    value = value[at[-1]]
  inner = plain
  for name in at[:-1]:
    inner = inner[name]
  inner[at[-1]] = data.draw(_json)
  card = json.dumps(plain).encode()

  def read(path):
    plain = schemas.read(path, schemas.Card, 'x')
    config_lib.check_model(ConfigDict(plain['config']))

  survives(read, tmp_path / release.CONFIG, card)
  survives(read, tmp_path / release.CONFIG, edited(card, data.draw(_edits)))
  tensors = safetensors.numpy.save({'a/b': np.ones((3, 4), np.float32), 'c': np.ones(5, np.float16)})
  survives(load_params, tmp_path / release.CODEC, edited(tensors, data.draw(_edits)))


@fuzz
@given(value=_json, edits=_edits)
def test_configurations_and_indices(tmp_path, value, edits):
  held = {'settings': {'shards': 2, 'formats': ['parquet']}, 'shards': {'0': {'clips': 3}}}
  index = json.dumps(held).encode()
  for data in (json.dumps(value).encode(), edited(index, edits)):
    survives(config_lib.load_config, tmp_path / 'config.json', data)
    survives(lambda path: shards.read_index(path.parent), tmp_path / 'tokens.json', data)


@fuzz
@given(rows=st.lists(_json | st.fixed_dictionaries(
    {'path': st.text(max_size=12) | st.just('a.wav')},
    optional={'speaker': _json, 'emotion': _json, 'split': _json, 'text': _json}), max_size=4),
       edits=_edits)
def test_manifests(tmp_path, rows, edits):
  (tmp_path / 'a.wav').write_bytes(SOUNDS['wav'])
  lines = '\n'.join(map(json.dumps, [*rows, {'path': 'a.wav', 'split': 'train'}])).encode()

  def read(path):
    source = FolderSource(path, 'train', min_seconds=0.1)
    assert source.digest() and all(source[i] is None or len(source[i]['audio']) for i in range(len(source)))

  survives(read, tmp_path / 'm.jsonl', lines)
  survives(read, tmp_path / 'm.jsonl', edited(lines, edits))


@fuzz
@given(edits=_edits)
def test_checkpoint_converter(tmp_path, edits):
  """The pickle inside changed, and the whole file."""
  whole = checkpoint(tmp_path / 'a.pt', (2, 2), (2, 1)).read_bytes()
  with zipfile.ZipFile(io.BytesIO(whole)) as archive:
    inside = {name: archive.read(name) for name in archive.namelist()}
  changed = io.BytesIO()
  with zipfile.ZipFile(changed, 'w') as archive:
    for name, content in inside.items():
      archive.writestr(name, edited(content, edits) if name.endswith('.pkl') else content)

  def read(path):
    state, _ = find_state(read_checkpoint(path))
    convert_state(state)

  survives(read, pathlib.Path(tmp_path / 'b.pt'), edited(whole, edits))
  survives(read, pathlib.Path(tmp_path / 'b.pt'), changed.getvalue())
