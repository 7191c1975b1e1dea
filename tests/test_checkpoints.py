"""Checkpoints know nothing of devices: written from one layout, read into any other, bit for bit."""

import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from affectcodec_jax.inference import restore
from affectcodec_jax.training import checkpoints, parallel
from configs.base import get_config
from tests.conftest import Position
from tests.small_step import State


def _state():
  rng = np.random.default_rng(0)
  # Split along the first axis, along the last, and not at all.
  shapes = {'wide': (64, 24), 'long': (3, 5, 128), 'odd': (7,)}
  arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  return State(np.int32(3), arrays, {name: 2 * x for name, x in arrays.items()})


def _devices(kind, fsdp):
  config = get_config()
  config.train.update(parallel=kind, fsdp=fsdp)
  return parallel.make_parallel(config)


def _shapes(devices, state):
  shapes = jax.eval_shape(lambda: state)
  return parallel.laid_out(shapes, devices.sharding(shapes))


LAYOUTS = [('pmap', 1), ('mesh', 1), ('mesh', 8)]


@pytest.mark.parametrize('kind, fsdp', LAYOUTS)
def test_a_checkpoint_of_one_layout_is_read_into_every_other(kind, fsdp, tmp_path):
  state, writer = _state(), _devices(kind, fsdp)
  manager = checkpoints.make_manager(tmp_path)
  checkpoints.save(manager, writer.to_save(writer.place(state)), Position())
  checkpoints.finish(manager)
  jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_state(tmp_path, state), state)
  for layout in LAYOUTS:
    reader = _devices(*layout)
    found = checkpoints.restore_latest(manager, _shapes(reader, state), Position())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), state)
    if layout[0] == 'mesh':  # no device was given more than its part
      shard = found.params['long'].addressable_shards[0].data
      assert shard.shape == (3, 5, 128 // layout[1])
      assert reader.place(found).params['long'] is found.params['long']
    jax.tree.map(np.testing.assert_array_equal, reader.fetch(reader.place(found)), state)


def test_stopping_is_asked_for_by_one_count(tmp_path, monkeypatch):
  """By the loop and by Orbax's `save`: processes that name other counts would agree on a step far away."""
  counts = []
  monkeypatch.setattr(ocp.utils, 'reached_preemption', lambda count: counts.append(count) or False)
  manager, state = checkpoints.make_manager(tmp_path), _state().replace(step=np.int32(4002))
  manager.reached_preemption(4001)
  checkpoints.save(manager, state, Position())
  checkpoints.finish(manager)
  manager.reached_preemption(4002)
  assert counts[0] == 1 and len(counts) > 2 and set(counts[1:]) == {2}


def test_checksums_are_of_bits_and_places():
  """By hand, mod 2^64: 1.0 is 0x3f800000. A bit, or the order, makes another."""
  ones = np.ones((2, 2), np.float32)
  name, = restore.checksums({'a': ones})
  assert restore.checksums({'a': ones})[name] == 0x3f800000 * (1 + 3 + 5 + 7)
  values = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
  flipped = values.copy()
  flipped.view(np.uint32)[17, 3] ^= 1 << 31
  others = [flipped, values[::-1], np.zeros_like(values)]
  assert len({restore.checksums({'a': x})[name] for x in (values, *others)}) == 4
  assert restore.checksums({'a': values[:, :15]}) == restore.checksums({'a': values[:, :15].copy()})


def test_checkpoints_of_release_0_3_are_read(tmp_path, caplog):
  """Their checksums are CRC-32 of whole arrays; they too are held against what is read."""
  state = _state()
  rest, layout = state.replace(ema=None), _devices('mesh', 8)
  manager = checkpoints.make_manager(tmp_path)
  sums = {'state': {f".params['{name}']": zlib.crc32(x.tobytes()) for name, x in state.params.items()},
          'ema': {f"['{name}']": 0 for name in state.ema}}
  sums['state']['.step'] = zlib.crc32(bytes([3, 0, 0, 0]))
  manager.save(3, args=ocp.args.Composite(
      state=ocp.args.StandardSave(rest), ema=ocp.args.StandardSave(state.ema),
      meta=ocp.args.JsonSave(sums)))
  manager.wait_until_finished()
  found = restore.read_item(manager, 3, 'state', _shapes(layout, state).replace(ema=None))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), rest)
  assert restore.read_item(manager, 3, 'ema', state.ema) is None
  assert 'checksums of ema do not match' in caplog.text
