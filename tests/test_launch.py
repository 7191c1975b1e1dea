"""launch/tpu.sh: dry run, arguments, and its loop against a `gcloud` that runs workers here."""

import os
import pathlib
import shlex
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / 'launch' / 'tpu.sh'
BASE = ['--name', 'affect', '--zone', 'us-central2-b']
TRAIN = ['--', '--config', 'configs/base.py', '--workdir', '/mnt/bucket/run 1']

# Answers like gcloud. ssh runs its command in $FAKE/home; a missing or preempted TPU has no ssh.
GCLOUD = r'''#!/usr/bin/env bash
printf '%s\n' "${*//$'\n'/ }" >> "$FAKE/calls"
verb=$4
state=$(cat "$FAKE/state")
case $verb in
  describe)
    if [[ $state == MISSING ]]; then echo 'ERROR: NOT_FOUND: no such node' >&2; exit 1; fi
    echo "$state" ;;
  create)
    if [[ -e $FAKE/no_capacity ]]; then rm "$FAKE/no_capacity"; echo 'no capacity' >&2; exit 1; fi
    rm -rf "$FAKE/home"; mkdir -p "$FAKE/home/env/bin" "$FAKE/home/affectcodec"
    cp "$FAKE/train" "$FAKE/home/env/bin/python"
    echo READY > "$FAKE/state" ;;
  delete) echo MISSING > "$FAKE/state" ;;
  scp) [[ $state == READY ]] ;;
  ssh)
    [[ $state == READY ]] || exit 255
    for arg in "$@"; do
      if [[ $arg == --command=*'uv pip install'* ]]; then
        exit "$(cat "$FAKE/install_status" 2> /dev/null || echo 0)"
      fi
      if [[ $arg == --command=* ]]; then HOME=$FAKE/home bash -c "${arg#--command=}"; fi
    done
    # A preemption that shows only after the end of training has been seen.
    if [[ -e $FAKE/late && $* == *'kill -0'* && -e $FAKE/home/train.exit ]]; then
      rm "$FAKE/late"; echo PREEMPTED > "$FAKE/state"
    fi ;;
esac
'''

# Takes the place of Python on the worker: the n-th line of $FAKE/plan says what the n-th run does.
TRAIN_PROGRAM = r'''#!/usr/bin/env bash
printf '%q ' "$@" >> "$FAKE/runs"; echo >> "$FAKE/runs"
plan=$(sed -n "$(wc -l < "$FAKE/runs")p" "$FAKE/plan")
echo "training log: $plan"
case $plan in
  preempted) echo PREEMPTED > "$FAKE/state"; exit 143 ;;
  vanished) echo MISSING > "$FAKE/state"; exit 0 ;;
  no_capacity) touch "$FAKE/no_capacity"; echo PREEMPTED > "$FAKE/state"; exit 143 ;;
  late_preemption) touch "$FAKE/late"; exit 0 ;;
  *) exit "$plan" ;;
esac
'''


def launch(*args, env=None, timeout=60):
  return subprocess.run([str(SCRIPT), *args], capture_output=True, text=True, timeout=timeout,
                        env=env, stdin=subprocess.DEVNULL)


@pytest.fixture
def cloud(tmp_path):
  """A folder with the fake `gcloud` on PATH: (folder, run(args, plan) -> CompletedProcess)."""
  (tmp_path / 'bin').mkdir()
  for name, text in (('bin/gcloud', GCLOUD), ('train', TRAIN_PROGRAM)):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'state').write_text('MISSING\n')
  env = {**os.environ, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'FAKE': str(tmp_path),
         'TPU_RETRY_SECONDS': '0.2', 'TMPDIR': str(tmp_path)}

  def run(args, plan):
    (tmp_path / 'plan').write_text('\n'.join(plan) + '\n')
    return launch(*args, env=env)

  return tmp_path, run


def verbs(folder):
  return [line.split()[3] for line in (folder / 'calls').read_text().splitlines()]


def test_dry_run_prints_everything_and_runs_nothing(tmp_path):
  """The commands parse as shell; neither gcloud nor tar is called."""
  (tmp_path / 'bin').mkdir()
  for name in ('gcloud', 'tar'):
    (tmp_path / 'bin' / name).write_text(f'#!/bin/sh\ntouch {tmp_path}/called\n')
    (tmp_path / 'bin' / name).chmod(0o755)
  env = {**os.environ, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'TMPDIR': str(tmp_path)}
  result = launch(*BASE, '--type', 'v4-32', '--version', 'v2-alpha-tpuv5', '--project', 'proj',
                  '--spot', '--dry-run', *TRAIN, env=env)
  assert result.returncode == 0, result.stderr
  assert sorted(p.name for p in tmp_path.iterdir()) == ['bin']
  lexer = shlex.shlex(result.stdout, posix=True, punctuation_chars=False)
  lexer.whitespace_split = True
  words = list(lexer)
  for word in ('create', '--accelerator-type=v4-32', '--version=v2-alpha-tpuv5', '--spot', 'scp',
               'describe', 'delete', '--project=proj', '--zone=us-central2-b', '--worker=0'):
    assert word in words, word
  assert words.count('gcloud') == 8
  commands = [w for w in words if w.startswith('--command=')]
  install, start, stream, status = commands
  assert 'jax[tpu]' in install and 'requirements.txt' in install
  assert 'affectcodec_jax.train' in start and '--config.train.distributed=True' in start
  assert r'--workdir /mnt/bucket/run\ 1' in start
  assert 'tail' in stream and 'train.exit' in status
  for word in (install, start):
    assert words[words.index(word) - 1] == '--worker=all'
  for command in commands:
    subprocess.run(['bash', '-n', '-c', command.removeprefix('--command=')], check=True)


def test_dry_run_works_without_gcloud(tmp_path):
  for name in ('bash', 'dirname', 'env'):
    (tmp_path / name).symlink_to(f'/usr/bin/{name}')
  result = launch(*BASE, '--type', 'v4-8', '--dry-run', *TRAIN, env={'PATH': str(tmp_path)})
  assert result.returncode == 0, result.stderr
  assert '--spot' not in result.stdout and '--project' not in result.stdout
  result = launch(*BASE, '--type', 'v4-8', *TRAIN, env={'PATH': str(tmp_path)})
  assert result.returncode == 2 and 'gcloud is not installed' in result.stderr


def test_dry_run_of_delete():
  result = launch(*BASE, '--delete', '--dry-run')
  assert result.stdout == (
      'gcloud compute tpus tpu-vm delete affect --zone=us-central2-b --quiet\n')


def test_help_names_every_option():
  result = launch('--help')
  assert result.returncode == 0 and not result.stderr
  for option in ('name', 'zone', 'type', 'version', 'project', 'spot', 'delete', 'dry-run'):
    assert f'--{option}' in result.stdout


def test_a_run_in_a_bucket_brings_what_that_needs():
  bucket = launch(*BASE, '--type', 'v4-8', '--dry-run', '--', '--workdir', 'gs://bucket/run')
  folder = launch(*BASE, '--type', 'v4-8', '--dry-run', *TRAIN)
  assert bucket.returncode == folder.returncode == 0, bucket.stderr
  assert '-r requirements-gcs.txt' in bucket.stdout and '--workdir gs://bucket/run' in bucket.stdout
  assert '-r requirements.txt' in folder.stdout and 'gcs' not in folder.stdout


@pytest.mark.parametrize('args, message', [
    ([], '--name'),
    (['--name', 'a'], '--zone'),
    (BASE, '--type'),
    ([*BASE, '--type'], '--type needs a value'),
    ([*BASE, '--type', '--spot'], '--type needs a value'),
    ([*BASE, '--type', 'v4-8'], '--workdir /PATH'),
    ([*BASE, '--type', 'v4-8', '--', '--config', 'c.py', '--workdir', 'runs/a'], '--workdir /PATH'),
    ([*BASE, '--type', 'v4-8', '--', '--workdir='], '--workdir /PATH'),
    ([*BASE, '--type', 'v4-8', '--config', 'c.py'], "unknown argument '--config'"),
    ([*BASE, '--delete', *TRAIN], 'no training arguments'),
])
def test_bad_arguments(args, message):
  result = launch(*args, '--dry-run') if '--' not in args else launch('--dry-run', *args)
  assert result.returncode == 2
  assert not result.stdout
  assert message in result.stderr and result.stderr.count('\n') == 1
  assert result.stderr.startswith('error: ')


def test_trains_to_the_end(cloud):
  folder, run = cloud
  result = run([*BASE, '--type', 'v4-8', *TRAIN], ['0'])
  assert result.returncode == 0, result.stderr
  assert 'training log: 0' in result.stdout
  assert shlex.split((folder / 'runs').read_text()) == [
      '-m', 'affectcodec_jax.train', *TRAIN[1:], '--config.train.distributed=True']
  assert verbs(folder).count('create') == 1 and 'delete' not in verbs(folder)


@pytest.mark.parametrize('event', ['preempted', 'vanished', 'late_preemption', 'no_capacity'])
def test_comes_back_after_preemption(cloud, event):
  folder, run = cloud
  result = run([*BASE, '--type', 'v4-8', '--spot', *TRAIN], [event, '0'])
  assert result.returncode == 0, result.stderr
  assert verbs(folder).count('create') == 2 + (event == 'no_capacity')
  assert verbs(folder).count('delete') == (event != 'vanished')
  first, second = (folder / 'runs').read_text().splitlines()
  assert first == second  # the same --workdir: it resumes


def test_a_stop_before_the_end_is_continued_on_the_same_tpu(cloud):
  folder, run = cloud
  result = run([*BASE, '--type', 'v4-8', *TRAIN], ['75', '0'])
  assert result.returncode == 0, result.stderr
  assert len((folder / 'runs').read_text().splitlines()) == 2
  assert verbs(folder).count('create') == 1


def test_failed_training_fails_the_script(cloud):
  folder, run = cloud
  result = run([*BASE, '--type', 'v4-8', *TRAIN], ['3'])
  assert result.returncode == 3
  assert len((folder / 'runs').read_text().splitlines()) == 1


def test_failed_first_creation_ends_at_once(cloud):
  folder, run = cloud
  (folder / 'no_capacity').touch()
  result = run([*BASE, '--type', 'v4-8', *TRAIN], ['0'])
  assert result.returncode == 1 and 'no capacity' in result.stderr
  assert verbs(folder) == ['describe', 'create']


def test_failing_installation_does_not_loop_for_ever(cloud):
  folder, run = cloud
  (folder / 'install_status').write_text('1')
  result = run([*BASE, '--type', 'v4-8', *TRAIN], ['0'])
  assert result.returncode == 2 and '5 attempts' in result.stderr
  assert not (folder / 'runs').exists()  # training never starts on a half-installed worker
