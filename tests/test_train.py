"""The trainer: one step of every configuration, devices, resuming, damage, messages."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from affectcodec_jax import config as config_lib
from affectcodec_jax import train as train_lib
from affectcodec_jax import weights
from affectcodec_jax.errors import UserError
from affectcodec_jax.training import checkpoints, parallel
from affectcodec_jax.training.state import create_state, init_params
from affectcodec_jax.training.step import draw_rates, train_step
from configs import base, paper, speech
from tests.conftest import tiny

EIGHT = ['--config', 'configs/base.py', '--config.train.batch_size=8']  # one clip a device
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _forget_programs():
  """A step for 8 devices takes thousands of memory maps, of which a process may have 65530."""
  yield
  jax.clear_caches()


def _batch(config, seed=0):
  shape = (config.train.batch_size, config_lib.crop_samples(config))
  return 0.1 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _state(config):
  teacher = weights.load_teacher(config.teacher.dim)
  audio = _batch(config)
  fresh = jax.jit(functools.partial(create_state, config))
  return jax.device_get(fresh(jax.random.PRNGKey(0), teacher, audio)), teacher


@pytest.mark.parametrize('module', [base, speech, paper])
@pytest.mark.parametrize('change', [
    {}, {'quantizer': 'full_rfsq'}, {'quantizer': 'rvq', 'acoustic_levels': (4, 4)},
    {'conditioning': False}])
def test_every_config_takes_one_step(module, change):
  """Sizes shrunk, everything else as the configuration says; the paper's in bfloat16."""
  config = tiny(module.get_config())
  if change and module is not base:
    pytest.skip('variants are tried on base')
  config.model.update(change)
  config_lib.validate(config)
  state, teacher = _state(config)
  before = jax.tree.map(np.copy, state.params)
  step = jax.jit(functools.partial(train_step, config=config, adversarial=True))
  state, metrics = step(state, teacher, {'audio': _batch(config)})
  state, metrics = step(state, teacher, {'audio': _batch(config)})  # the first has a rate of zero
  assert bool(metrics['finite'])
  changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
  still = [k for k, v in jax.tree_util.tree_leaves_with_path(changed) if not v]
  assert not still, f'parameters without gradient: {still}'


def test_paper_has_the_paper_s_size():
  """135.05 M trainable parameters with a teacher of width 1024."""
  config = paper.get_config()
  config.teacher.dim = 1024
  params = jax.eval_shape(functools.partial(init_params, config), jax.random.PRNGKey(0))[0]
  millions = sum(x.size for x in jax.tree.leaves(params)) / 1e6
  assert abs(millions - 135.05) < 0.5, millions


def test_without_multi_rate_each_clip_is_decoded_once(tiny_config):
  tiny_config.loss.multi_rate = 0.0
  state, teacher = _state(tiny_config)
  step = jax.jit(functools.partial(train_step, config=tiny_config, adversarial=False))
  _, metrics = step(state, teacher, {'audio': _batch(tiny_config)})
  assert bool(metrics['finite']) and 'loss/multi_rate' not in metrics


def test_stage_dropout_is_biased(tiny_config):
  """Frequencies of 20000 draws: 0.25 + 0.75 * 0.2 at the top; 0.02 is five standard errors."""
  rates = np.asarray(draw_rates(tiny_config, jax.random.key(0), 20000))
  share = np.bincount(rates, minlength=3) / 20000
  np.testing.assert_allclose(share, [0.375, 0.225, 0.4], atol=0.02)


@pytest.mark.parametrize('devices', [2, 8])
def test_n_devices_equal_one(tiny_config, devices):
  """Same update from 1 and n devices.

  Sums in another order: 2e-4 of the largest entry of each first and second moment. (Of moments, not
  of parameters: Adam's first steps are the signs of gradients, also of those that are all rounding.)
  """
  state, teacher = _state(tiny_config)
  state = state.replace(step=np.int32(2))  # past the warm-up's zero rate
  audio = _batch(tiny_config)
  one, m1 = jax.jit(functools.partial(train_step, config=tiny_config, adversarial=True))(
      state, teacher, {'audio': audio})
  step = functools.partial(train_step, config=tiny_config, adversarial=True, axis_name='data')
  mapped = jax.pmap(step, axis_name='data', devices=jax.devices()[:devices])
  copies = jax.tree.map(lambda x: np.stack([x] * devices), (state, teacher))
  many, mn = mapped(*copies, {'audio': audio.reshape(devices, -1, audio.shape[1])})
  for name in m1:
    np.testing.assert_allclose(mn[name][0], m1[name], rtol=2e-4, atol=1e-5, err_msg=name)
  moments = lambda s: jax.tree.leaves((s.opt_state, s.disc_opt_state))
  for a, b in zip(moments(one), moments(many)):
    a, b = np.asarray(a, np.float64), np.asarray(b[0], np.float64)
    np.testing.assert_allclose(b, a, rtol=1e-2, atol=2e-4 * max(np.abs(a).max(), 1e-12))


def _params(workdir, config):
  """Everything in the newest checkpoint but the data's position, and its step."""
  state, _ = _state(config)
  manager = checkpoints.make_manager(workdir)
  step = manager.latest_step()
  return (checkpoints._read(manager, step, 'state', state.replace(ema=None)),
          checkpoints._read(manager, step, 'ema', state.ema)), step


def test_resumed_run_is_bit_equal_to_a_straight_one(tiny_config, tmp_path):
  """6 steps at once against 4, a new trainer, 2 more; the discriminator joins at step 3."""
  config = tiny_config
  train_lib.train(config.copy_and_resolve_references(), tmp_path / 'straight')
  _run_until(config, tmp_path / 'resumed', 4)
  train_lib.train(config.copy_and_resolve_references(), tmp_path / 'resumed')
  a, step_a = _params(tmp_path / 'straight', config)
  b, step_b = _params(tmp_path / 'resumed', config)
  assert step_a == step_b == 6
  jax.tree.map(np.testing.assert_array_equal, a, b)
  lines = [json.loads(x) for x in (tmp_path / 'resumed' / 'metrics.jsonl').read_text().splitlines()]
  assert [x['step'] for x in lines] == [1, 2, 3, 4, 5, 6]
  assert all(k in lines[-1] for k in ('loss/mel', 'loss/emotion', 'loss/cycle', 'loss/commitment',
                                      'loss/multi_rate', 'loss/adversarial', 'loss/discriminator'))


def _run_until(config, workdir, step):
  """Stops a run at `step` as SIGTERM would, with the schedule of the whole run."""
  original = train_lib._catch_signals

  class StopAt(list):
    calls = 0

    def __init__(self, distributed):
      assert not distributed

    def __bool__(self):
      StopAt.calls += 1
      return StopAt.calls >= step

  train_lib._catch_signals = StopAt
  try:
    train_lib.train(config.copy_and_resolve_references(), workdir)
  finally:
    train_lib._catch_signals = original


def test_damaged_checkpoints_are_passed_over(tiny_config, tmp_path, capsys):
  """A flipped bit, a cut file and an empty folder: the newest sound one is used, nothing deleted."""
  tiny_config.train.keep_checkpoints = 5
  train_lib.train(tiny_config.copy_and_resolve_references(), tmp_path)
  root = tmp_path / 'checkpoints'
  largest = max((p for p in (root / '6').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  (root / '8').mkdir()
  for p in (root / '4' / 'ema').rglob('*'):
    if p.is_file():
      p.write_bytes(p.read_bytes()[:10])
  config = tiny_config.copy_and_resolve_references()
  train_lib.train(config, tmp_path)
  assert 'resumed at step 2' in capsys.readouterr().out
  assert {'4', '6', '8'} <= {p.name for p in (tmp_path / 'damaged_checkpoints').iterdir()}
  assert checkpoints.make_manager(tmp_path).latest_step() == 6
  for p in root.glob('*/data/*'):  # nothing left to continue from: not a fresh start, and nothing moved
    p.write_text('{}')
  with pytest.raises(UserError, match='no checkpoint there fits'):
    train_lib.train(tiny_config, tmp_path)
  assert checkpoints.make_manager(tmp_path).latest_step() == 6


def test_nan_stops_the_run_and_names_metric_and_step(tiny_config, tmp_path):
  tiny_config.train.lr = 1e30
  with pytest.raises(UserError, match=r'loss/\w+ is (nan|inf) at step \d+'):
    train_lib.train(tiny_config, tmp_path)


def test_other_model_in_the_same_folder_is_refused(tiny_config, tmp_path):
  config_lib.save_config(tmp_path / 'config.json', tiny_config)
  train_lib._check_workdir(tiny_config, tmp_path)
  tiny_config.model.encoder_dim += 1
  with pytest.raises(UserError, match='model.encoder_dim'):
    train_lib._check_workdir(tiny_config, tmp_path)


@pytest.mark.parametrize('args, message', [
    (['--config', 'configs/none.py'], 'no such configuration file'),
    ([], '--config is missing'),
    (['--config', 'configs/base.py', '--config.train.step=5'], 'step'),
    (['--config', 'configs/base.py', '--config.train.steps=abc'], 'abc'),
    (['--config', 'configs/base.py', '--config.rates=(2,4)'], 'rates'),
    (['--config', 'configs/base.py', '--config.model.quantizer=vq'], 'quantizer'),
    (['--config', 'configs/base.py', '--config.train.batch_size=3'], 'batch_size'),
    ([*EIGHT, '--config.data.source=folder', '--config.data.path=/nowhere'], '/nowhere'),
    ([*EIGHT, '--config.teacher.path=/nowhere'], '/nowhere'),
    ([*EIGHT, '--config.data.source=disk'], 'data.source'),
    (['--config', 'configs/base.py', 'surplus'], 'surplus'),
    (['--config', 'configs/teacher.py'], 'made for another command'),
    ([*EIGHT, '--config.seed=-1'], 'seed'),
    ([*EIGHT, '--config.train.keep_checkpoints=0'], 'keep_checkpoints'),
    ([*EIGHT, '--config.model.acoustic_levels=(8,8,8,8,8,8)'], 'bits'),
    ([*EIGHT, '--config.train.distributed=True'], 'other processes'),
])
def test_one_line_for_each_mistake(args, message, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert train_lib.main(['train', *args, '--workdir', str(tmp_path / 'run')]) == 2
  err = capsys.readouterr().err.strip().splitlines()
  assert len(err) == 1 and err[0].startswith('error: ') and message in err[0], err


def test_sigterm_saves_and_exits_cleanly(tmp_path):
  """A real process, a real signal; the next start resumes at the step where it stopped."""
  sizes = ['--config.model.encoder_dim=2', '--config.model.decoder_dim=32',
           '--config.discriminator.filters=2', '--config.data.crop_seconds=0.2']
  command = [sys.executable, '-m', 'affectcodec_jax.train', '--config', 'configs/base.py',
             '--workdir', str(tmp_path), '--config.train.steps=100000',
             '--config.train.checkpoint_every=100000', '--config.train.log_every=1', *sizes]
  env = os.environ | {'XLA_FLAGS': '', 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
  process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
  for line in process.stdout:
    if line.startswith('step 3/'):
      process.send_signal(signal.SIGTERM)
      break
  out = process.stdout.read()
  assert process.wait(timeout=120) == 0, out
  assert 'stopped at step' in out
  step = int(out.split('stopped at step ')[1].split(';')[0])
  assert checkpoints.make_manager(tmp_path).latest_step() == step >= 3


def test_batch_must_divide_over_devices():
  with pytest.raises(UserError, match='multiple of 8'):
    parallel.local_batch_size(12)


