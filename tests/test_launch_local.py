"""launch/local.sh and launch/slurm.sh: with real processes, and with programs that stand in for them."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests.conftest import ONE_DEVICE

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'

# Takes the place of training: notes how it was called, then does what $FAKE/plan says for its number.
PYTHON = r'''#!/usr/bin/env bash
if [[ $1 == -c ]]; then exec /usr/bin/env -S PATH="$REAL_PATH" python "$@"; fi
echo "$JAX_PROCESS_ID $CUDA_VISIBLE_DEVICES" >> "$FAKE/gpus"
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*" >> "$FAKE/calls"
trap 'echo "$JAX_PROCESS_ID" >> "$FAKE/asked"; exit 75' TERM
plan=$(sed -n "$((JAX_PROCESS_ID + 1))p" "$FAKE/plan")
if [[ $plan != wait ]]; then exit "$plan"; fi
for i in {1..600}; do sleep 0.1; done
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name, text in (('python', PYTHON), ('nvidia-smi', '#!/usr/bin/env bash\nexit 1\n')):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  monkeypatch.setenv('FAKE', str(tmp_path))
  monkeypatch.setenv('REAL_PATH', os.environ['PATH'])
  monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
  return tmp_path


def start(count, *args):
  return subprocess.Popen([str(LAUNCH / 'local.sh'), str(count), *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize('plan, status', [('0 0 0', 0), ('75 75 75', 75), ('0 3 0', 3), ('wait 3 wait', 3)])
def test_local_starts_all_and_ends_with_them(fake, plan, status):
  """A failure ends those that would wait for it; a common early stop is reported as such."""
  (fake / 'plan').write_text('\n'.join(plan.split()))
  run = start(3, '--config', 'c.py', '--workdir', str(fake / 'w'))
  run.communicate(timeout=60)
  assert run.returncode == status
  calls = (fake / 'calls').read_text().splitlines()
  assert sorted(c.split(':')[0].split()[0] for c in calls) == ['0', '1', '2']
  assert len({c.split(' at ')[1] for c in calls}) == 1  # one address, the same arguments
  assert all(c.endswith(f'--workdir {fake}/w --config.train.distributed=True') for c in calls)


@pytest.mark.parametrize('visible, shown', [(None, '0 1'), ('5,2,7', '5 2'), ('', ' ')])
def test_each_process_sees_a_gpu_of_its_own(fake, monkeypatch, visible, shown):
  """Of those there are, or of those the user was given; none where he wants none."""
  (fake / 'bin' / 'nvidia-smi').write_text('#!/usr/bin/env bash\nseq 3\n')
  (fake / 'plan').write_text('0\n0')
  if visible is None:
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  else:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
  run = start(2, f'--workdir={fake}/w')
  run.communicate(timeout=60)
  assert run.returncode == 0
  gpus = sorted((fake / 'gpus').read_text().splitlines())
  assert gpus == [f'{i} {gpu}' for i, gpu in enumerate(shown.split(' '))]
  if visible:
    run = start(4, f'--workdir={fake}/w')
    assert '4 processes, but 3 GPUs' in run.communicate(timeout=60)[1]


def test_term_reaches_all(fake):
  (fake / 'plan').write_text('wait\nwait')
  run = start(2, f'--workdir={fake}/w')
  for _ in range(100):
    if (fake / 'calls').exists() and len((fake / 'calls').read_text().splitlines()) == 2:
      break
    time.sleep(0.1)
  run.send_signal(signal.SIGTERM)
  run.communicate(timeout=60)
  assert run.returncode == 75 and sorted((fake / 'asked').read_text().split()) == ['0', '1']


@pytest.mark.parametrize('args, message', [
    (['two'], 'number of processes'), (['2', '--config', 'c.py'], 'give --workdir'),
    (['2', '--workdir', 'gs://bucket/run'], 'gs://bucket/run: give a folder of this machine')])
def test_local_tells_what_is_missing(fake, args, message):
  done = subprocess.run([str(LAUNCH / 'local.sh'), *args], capture_output=True, text=True, check=False)
  assert done.returncode == 2 and message in done.stderr and not (fake / 'calls').exists()


# The real step takes a minute to compile in each process; that many devices make the same of it as one is
# shown by `test_n_devices_equal_one`.
SMALL_PYTHON = r'''#!/usr/bin/env bash
export PATH="$REAL_PATH"
[[ $1 == -m ]] || exec python "$@"
exec python -c '
import sys
from affectcodec_jax import train
from tests import small_step
small_step.install()
sys.exit(train.main())' "${@:3}"
'''


def test_two_real_processes_train_as_one(tmp_path):
  """Three steps, one clip a process: one log with each step once; resumed, all from the same checkpoint."""
  python = tmp_path / 'bin' / 'python'
  python.parent.mkdir()
  python.write_text(SMALL_PYTHON)
  python.chmod(0o755)
  env = os.environ | {'XLA_FLAGS': ONE_DEVICE, 'JAX_PLATFORMS': 'cpu', 'REAL_PATH': os.environ['PATH'],
                      'PATH': f'{python.parent}:{os.environ["PATH"]}'}
  small = {'train.steps': 3, 'train.batch_size': 2, 'train.log_every': 1, 'train.adversarial_start': 9,
           'train.checkpoint_every': 1, 'train.num_samples': 0, 'train.valid_clips': 0,
           'data.crop_seconds': 0.2, 'data.num_clips': 20, 'train.fsdp': 2}  # half of the state in each
  args = [f'--config.{k}={v}' for k, v in small.items()]
  folder = tmp_path / 'run'

  def train():
    run = subprocess.run([str(LAUNCH / 'local.sh'), '2', '--config', 'configs/base.py', '--workdir',
                          str(folder), *args], capture_output=True, text=True, env=env, timeout=600,
                         cwd=LAUNCH.parent, check=False)
    assert run.returncode == 0, run.stdout + run.stderr + (folder / 'process_1.log').read_text()
    assert '2 cpu device(s)' in run.stdout
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines if 'loss/mel' in line] == [1, 2, 3]
    return run.stdout

  train()
  # Only the second process finds its data position damaged; both go back to step 2.
  positions = sorted((folder / 'checkpoints' / '3' / 'data').glob('process_1*'))
  assert len(positions) == 1
  positions[0].write_text('{')
  assert 'resumed at step 2' in train()
  assert (folder / 'damaged_checkpoints' / '3').is_dir()
  assert {p.name for p in (folder / 'checkpoints').iterdir() if p.name.isdigit()} == {'1', '2', '3'}


@pytest.mark.parametrize('status, requeued', [(0, False), (75, True), (1, False)])
def test_slurm_queues_again_what_was_stopped_early(tmp_path, monkeypatch, status, requeued):
  for name, text in (('srun', f'echo "$JAX_LOCAL_DEVICE_IDS $@" > {tmp_path}/started; exit {status}'),
                     ('scontrol', f'echo "$@" > {tmp_path}/queued')):
    (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  script = ['bash', str(LAUNCH / 'slurm.sh'), '--config', 'configs/paper.py', '--workdir', '/shared/run']
  done = subprocess.run(script, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and 'sbatch' in done.stderr
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  done = subprocess.run(script, capture_output=True, text=True, check=False)
  assert done.returncode == status
  started = (tmp_path / 'started').read_text().strip()
  assert started.startswith('0 ') and '--gpus-per-task=1' in started
  assert started.endswith('--workdir /shared/run --config.train.distributed=True')
  assert (tmp_path / 'queued').exists() == requeued
