"""The trainer: resuming, damage, signals, messages."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from affectcodec_jax import config as config_lib
from affectcodec_jax import train as train_lib
from affectcodec_jax.common import schemas
from affectcodec_jax.common.errors import UserError
from affectcodec_jax.inference import restore
from affectcodec_jax.training import checkpoints, held_out, parallel
from affectcodec_jax.training.workdir import open_run
from configs import lite
from configs.base import get_config as base_config
from tests.conftest import ONE_DEVICE, run_until, state_and_teacher, tiny

pytestmark = pytest.mark.usefixtures('one_mel_scale')


@pytest.fixture
def config():
  """Of the backbone that compiles soonest, on speech-like audio."""
  config = tiny(lite.get_config())
  config.data.source, config.data.path = 'synthetic', ''
  config.loss.adversarial = 1.0
  return config


EIGHT = ['--config', 'configs/base.py', '--config.train.batch_size=8']  # one clip a device
ROOT = pathlib.Path(__file__).parent.parent


def _params(workdir, config):
  """Everything in the newest checkpoint but the data's position, and its step."""
  state, _ = state_and_teacher(config)
  manager = checkpoints.make_manager(workdir)
  step = manager.latest_step()
  return (restore.read_item(manager, step, 'state', state.replace(ema=None)),
          restore.read_item(manager, step, 'ema', state.ema)), step


def test_resumed_run_is_bit_equal_to_a_straight_one(config, tmp_path):
  """6 steps at once against 4, a new trainer, 2 more; the discriminator joins at step 3."""
  train_lib.train(config.copy_and_resolve_references(), tmp_path / 'straight')
  run_until(config, tmp_path / 'resumed', 4)
  train_lib.train(config.copy_and_resolve_references(), tmp_path / 'resumed')
  a, step_a = _params(tmp_path / 'straight', config)
  b, step_b = _params(tmp_path / 'resumed', config)
  assert step_a == step_b == 6
  jax.tree.map(np.testing.assert_array_equal, a, b)
  lines = [json.loads(x) for x in (tmp_path / 'resumed' / 'metrics.jsonl').read_text().splitlines()]
  assert [x['step'] for x in lines] == [1, 2, 3, 4, 5, 6]
  assert all(k in lines[-1] for k in ('loss/mel', 'loss/emotion', 'loss/cycle', 'loss/commitment',
                                      'loss/pitch', 'loss/adversarial', 'loss/discriminator'))


def test_damaged_checkpoints_are_passed_over(small_run, tmp_path, capsys):
  """A flipped bit, a cut file and an empty folder: the newest sound one is used, nothing deleted."""
  config = small_run
  config.train.keep_checkpoints = 5
  train_lib.train(config.copy_and_resolve_references(), tmp_path)
  root = tmp_path / 'checkpoints'
  largest = max((root / '6' / 'ema').rglob('d/*'), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  (root / '8').mkdir()
  for p in (root / '4' / 'ema').rglob('*'):
    if p.is_file():
      p.write_bytes(p.read_bytes()[:10])
  train_lib.train(config.copy_and_resolve_references(), tmp_path)
  assert 'resumed at step 2' in capsys.readouterr().out
  assert {'4', '6', '8'} <= {p.name for p in (tmp_path / 'damaged_checkpoints').iterdir()}
  assert checkpoints.make_manager(tmp_path).latest_step() == 6
  for p in root.glob('*/data/*'):  # nothing left to continue from: not a fresh start, and nothing moved
    p.write_text('{}')
  with pytest.raises(UserError, match='no checkpoint there fits'):
    train_lib.train(config, tmp_path)
  assert checkpoints.make_manager(tmp_path).latest_step() == 6


def test_nan_stops_the_run_and_names_metric_and_step(config, tmp_path, monkeypatch):
  """Bad audio at step 4: the checkpoint of step 2 stays the newest."""
  batches, devices = [], parallel.make_parallel(config)

  def split(batch):
    batches.append(batch)
    return devices.split(batch | {'audio': batch['audio'] * (np.nan if len(batches) == 4 else 1)})

  monkeypatch.setattr(parallel, 'make_parallel', lambda config: devices._replace(split=split))
  with pytest.raises(UserError, match=r'loss/\w+ is nan at step 4;'):
    train_lib.train(config, tmp_path)
  assert checkpoints.make_manager(tmp_path).latest_step() == 2


def test_other_model_in_the_same_folder_is_refused(config, tmp_path):
  config_lib.save_config(tmp_path / 'config.json', config)
  assert open_run(config, tmp_path, tmp_path) == []
  config.train.steps += 1  # reported, not refused
  changed = f'train.steps={config.train.steps} (was {config.train.steps - 1})'
  assert open_run(config, tmp_path, tmp_path) == [changed]
  config.teacher.path = 'teacher.safetensors'
  config_lib.save_config(tmp_path / 'config.json', config)
  config.teacher.path = ''  # the run has a copy; what it was made with stays in its configuration
  assert open_run(config, tmp_path, tmp_path) == [] and config.teacher.path == 'teacher.safetensors'
  config.teacher.student = 'student.safetensors'
  with pytest.raises(UserError, match='teacher.student=, now student.safetensors'):
    open_run(config, tmp_path, tmp_path)
  config.teacher.student = ''
  config.model.encoder_dim += 1
  with pytest.raises(UserError, match='model.encoder_dim'):
    open_run(config, tmp_path, tmp_path)


def test_a_run_without_a_checkpoint_begins_with_the_teacher_that_is_named(small_run, tmp_path):
  """An earlier start that was killed before its first checkpoint has left another teacher's copy."""
  config = small_run
  config.train.steps = config.train.checkpoint_every = 1
  config.train.adversarial_start = 9
  (tmp_path / 'teacher.safetensors').write_bytes(b'of the start before')
  train_lib.train(config, tmp_path)
  assert (tmp_path / 'teacher.safetensors').read_bytes() != b'of the start before'


@pytest.mark.parametrize('args, message', [
    (['--config', 'configs/none.py'], 'no such configuration file'),
    ([], '--config is missing'),
    (['--config', 'configs/base.py', '--config.train.step=5'], 'Did you mean'),
    (['--config', 'configs/base.py', '--config.model.emotion_levels=()'], 'model.emotion_levels'),
    (['--config', 'configs/base.py', '--config.model.emotion_dim=2'], 'model.emotion_levels'),
    ([*EIGHT, '--config.data.source=folder'], 'no data is named'),
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
    ([*EIGHT, '--config.train.valid_clips=-1'], 'train.valid_clips: Input should be greater than or equal'),
    ([*EIGHT, '--config.data.speed=1'], 'data.speed: Input should be less than 1, got 1.0'),
    ([*EIGHT, '--config.discriminator.n_ffts=()'], 'loss.adversarial needs discriminator.n_ffts'),
    ([*EIGHT, '--config.model.acoustic_levels=(8,8,8,8,8,8)'], 'bits'),
    ([*EIGHT, '--config.train.distributed=True'], 'other processes'),
])
def test_one_line_for_each_mistake(args, message, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert train_lib.main(['train', *args, '--workdir', str(tmp_path / 'run')]) == 2
  err = capsys.readouterr().err.strip().splitlines()
  assert len(err) == 1 and err[0].startswith('error: ') and message in err[0], err


@pytest.mark.parametrize('field, value', [
    ('train.clip_norm', 0.0), ('train.lr', -1.0), ('train.ema_decay', 2.0), ('train.beta1', 1.0),
    ('train.stage_dropout', 1.5), ('train.checkpoint_every', 0), ('train.parallel', 'xmap'),
    ('loss.adversarial', -1.0), ('loss.mel', float('nan')), ('loss.mel_floor', 0.0), ('data.gain_db', -1.0),
    ('data.equalise_db', -1.0), ('data.crop_seconds', float('inf')), ('data.crop_seconds', 0.1),
    ('model.backbone', 'unet'), ('model.compute_dtype', 'float16'), ('model.num_stages', 256)])
def test_values_that_no_training_can_have_are_refused(config, field, value):
  section, name = field.split('.')
  config[section][name] = value
  with pytest.raises(UserError, match=field):
    config_lib.validate(config)


def test_every_field_has_a_range_and_every_configuration_its_fields():
  """What is in configs/base.py and not in the schema would be read, unchecked, from a file."""
  for name, section in base_config().items():
    if isinstance(section, ConfigDict):
      assert set(section) == set(schemas.SECTIONS[name].model_fields) - {'dropout', 'label_smoothing'}


def test_what_only_training_reads_does_not_keep_a_codec_from_use(config, tmp_path):
  """A release may have been trained by values that are refused today, or unknown ones."""
  path = tmp_path / 'config.json'
  for section, name, value, message in (
      ('train', 'disc_lr', 0.0, None), ('train', 'stage_start', 'x', None), ('loss', 'pitch', None, None),
      ('model', 'num_stages', 0, 'num_stages'), ('train', 'rate_probs', 1, 'rate_probs')):
    plain = json.loads(config.to_json())
    plain[section][name] = value
    path.write_text(json.dumps(plain))
    if message:
      with pytest.raises(UserError, match=message):
        config_lib.load_config(path)
    else:
      assert config_lib.load_config(path)[section][name] == value


def test_a_training_that_never_rounds_says_so(config, caplog):
  config.train.update(steps=300, unquantized_steps=200, rounding_steps=100)
  config_lib.validate(config)
  assert 'before the quantiser rounds at step 300' in caplog.text
  caplog.clear()
  config.train.steps = 301
  config_lib.validate(config)
  assert not caplog.text


def _terminated(workdir, at, *more, **env):
  """(exit status, output) of a training that gets TERM when it prints a line that starts with `at`."""
  sizes = ['--config.model.backbone=lite', '--config.model.lite.width=16',
           '--config.model.lite.encoder_depth=1', '--config.model.lite.decoder_depth=1',
           '--config.train.adversarial_start=1000', '--config.data.crop_seconds=0.2']
  command = [sys.executable, '-m', 'affectcodec_jax.train', '--config', 'configs/base.py',
             '--workdir', str(workdir), '--config.train.steps=100000',
             '--config.train.checkpoint_every=100000', '--config.train.log_every=1', *sizes, *more]
  env = os.environ | {'XLA_FLAGS': ONE_DEVICE, 'XDG_CACHE_HOME': str(workdir / 'cache')} | env
  process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
  for line in process.stdout:
    if line.startswith(at):
      process.send_signal(signal.SIGTERM)
      break
  out = process.stdout.read()
  return process.wait(timeout=120), out


def test_sigterm_saves_and_exits_cleanly(tmp_path):
  """A real process, a real signal; the next start resumes at the step where it stopped.

  With train.distributed processes agree on the step by JAX's own handler, and a run that goes on must not
  miss a TERM that comes before its first step.
  """
  status, out = _terminated(tmp_path, 'step 3/')
  assert status == 0 and 'stopped at step' in out, out
  step = int(out.split('stopped at step ')[1].split(';')[0])
  assert checkpoints.make_manager(tmp_path).latest_step() == step >= 3
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  status, out = _terminated(tmp_path, 'compiling', '--config.train.distributed=True',
                            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES='1', JAX_PROCESS_ID='0')
  assert status == train_lib.STOPPED_EARLY and f'stopped at step {step + 1};' in out, out


def test_a_run_over_a_mesh_goes_on_under_pmap(small_run, tmp_path, monkeypatch, capsys):
  """Two steps with the state split over 4 devices, two more with a copy on each of 8; audio of both.

  That both make the same of a step is shown by `test_n_devices_equal_one`.
  """
  def make_validator(config, audio):
    return lambda ema, frozen: {'valid/mel_3_stages': ema['w'].std()}

  monkeypatch.setattr(held_out, 'make_validator', make_validator)
  config = small_run
  config.train.update(parallel='mesh', fsdp=4, steps=2, num_samples=1, valid_clips=2)
  train_lib.train(config, tmp_path)
  config.train.update(parallel='pmap', fsdp=1, steps=4)
  assert train_lib.train(config, tmp_path)
  assert 'resumed at step 2' in capsys.readouterr().out
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'loss/mel' in line] == [1, 2, 3, 4]
  found = {line['step']: line['valid/mel_3_stages'] for line in lines if 'valid/mel_3_stages' in line}
  assert list(found) == [2, 4] and 0 < found[4] < found[2]  # small steps draw all towards their mean
  assert len(list((tmp_path / 'samples').glob('step_000000[24]/*.wav'))) >= 2
