"""Exported programs against the codec itself, on lengths that the export never saw."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from affectcodec_jax import __main__ as cli
from affectcodec_jax import api
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.data.synthetic import SyntheticSource
from affectcodec_jax.inference import export, weights
from affectcodec_jax.models import source_filter
from affectcodec_jax.models.codec import init_params
from configs import base, lite
from tests.conftest import tiny

HAS_ONNX = all(map(importlib.util.find_spec, ('jax2onnx', 'onnx_ir', 'onnxruntime')))


def codec(configuration):
  """An untrained codec of a tiny configuration: what it encodes is noise, and the programs' to repeat."""
  config = tiny(configuration.get_config())
  config.rates = (1, 3)
  config.model.strides = base.get_config().model.strides if config.model.backbone == 'lite' else (16, 20)
  config.model.lite.width, config.model.lite.encoder_depth, config.model.lite.decoder_depth = 32, 1, 1
  params = init_params(config, jax.random.PRNGKey(0))[0]
  return api.Pretrained(config, jax.device_get(params), {'teacher': weights.load_teacher(config)}, 0)


@pytest.fixture(scope='module')
def ours():
  return codec(lite)


def check(ours, form, frames):
  """Borders between codes may go either way, the rest not.

  Float32 rounding is some 1e-7 a value and a code is some tenths wide: far less than 1 % may differ.
  """
  write, read = export.WRITERS[form]
  encode, decode = (read(write(*p)) for p in export.programs(ours).values())
  clips = SyntheticSource(8)
  speech = np.concatenate([clips[i]['audio'] for i in range(8)])
  codes, audio = export.compare(ours, encode, decode, speech, frames)
  assert codes <= 0.01 and audio < 1e-4
  return encode, decode


def test_stablehlo_of_the_dac_networks():
  encode, decode = check(codec(base), 'stablehlo', frames=(37,))
  # The comparison is of something: there are many codes, and a stage less sounds different.
  codes = np.asarray(encode(np.random.default_rng(0).normal(size=(37, 320)).astype(np.float32) * 0.1))
  assert codes.shape == (37, 3) and len(np.unique(codes)) > 10
  less = np.where(np.arange(3) < 2, codes, -1)
  assert np.abs(np.asarray(decode(codes)) - np.asarray(decode(less))).max() > 1e-4


@pytest.mark.skipif(not HAS_ONNX, reason='requirements-export.txt is not installed')
def test_onnx_of_the_lite_networks(ours):
  _, decode = check(ours, 'onnx', frames=(1, 60))
  # Phase and position of the first frame make the source of another place in a recording.
  codes = np.random.default_rng(0).integers(0, 2 ** 15, (60, 3)).astype(np.int32)
  start = (-12345, 700 * 320)
  run = ours._inference
  around = run.decoder_context
  at = np.clip(np.arange(-around, 60 + around), 0, 59)
  source = source_filter.Source(run._increments(ours.params, [codes], 1)[0][at][None],
                                *(np.array([x], np.int32) for x in (around, *start)))
  expected = np.asarray(run.synthesise(ours.params, run.latent(ours.params, codes[at][None]), source))[0]
  decoded = np.asarray(decode(codes, np.array(start, np.int32))).ravel()
  np.testing.assert_allclose(decoded, expected, atol=1e-4)
  assert np.abs(np.asarray(decode(codes)).ravel() - decoded).max() > 0.01


def test_a_program_that_differs_is_not_written(ours, tmp_path, monkeypatch):
  monkeypatch.setitem(export.WRITERS, 'stablehlo', (lambda *program: b'program', lambda data: None))
  monkeypatch.setattr(export, 'compare', lambda *a: (0.5, float('nan')))
  with pytest.raises(UserError, match='differ from the codec'):
    export.save(ours, tmp_path, np.zeros(0, np.float32))
  assert not list(tmp_path.iterdir())


def test_programs_of_an_earlier_export_do_not_stay(ours, tmp_path, monkeypatch):
  writer = (lambda *program: b'program', lambda data: None)
  monkeypatch.setattr(export, 'WRITERS', {'stablehlo': writer, 'onnx': writer})
  monkeypatch.setattr(export, 'require_extra', lambda *a, **k: None)
  monkeypatch.setattr(export, 'compare', lambda *a: (0.0, 0.0))
  (tmp_path / 'notes.txt').touch()
  export.save(ours, tmp_path, np.zeros(0, np.float32), ('stablehlo', 'onnx'))
  export.save(ours, tmp_path, np.zeros(0, np.float32), ('onnx',))
  assert {path.name for path in tmp_path.iterdir()} == {'encoder.onnx', 'decoder.onnx', 'export.json',
                                                        'notes.txt'}


def test_the_command_writes_programs_of_any_length_and_their_card(ours, tmp_path, monkeypatch, capsys):
  """StableHLO of the lite networks; `save` itself compares, and refuses what differs (see above)."""
  monkeypatch.setattr(api, 'load', lambda path: ours)
  monkeypatch.setattr(export, 'CHECKED_FRAMES', (1, 37))
  assert cli.main(['export', str(tmp_path / 'out'), '--format', 'stablehlo']) == 0
  assert 'of codes differ' in capsys.readouterr().out
  card = json.loads((tmp_path / 'out' / 'export.json').read_text())
  assert card['fingerprint'] == ours.fingerprint.hex() and card['hop_length'] == 320
  assert [r['kbps'] for r in card['rates']] == [0.75, 2.25]
  for name in ('encoder', 'decoder'):
    assert (tmp_path / 'out' / card['files']['stablehlo'][name]).stat().st_size > 1000
