#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice, and comes back after preemptions.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: launch/tpu.sh --name NAME --zone ZONE --type TYPE [options] -- TRAIN_ARGS...
       launch/tpu.sh --name NAME --zone ZONE --delete [options]

Creates the TPU VM or pod slice NAME, or reuses it, copies this repository to every worker, installs
jax[tpu] and requirements.txt, starts

  python -m affectcodec_jax.train TRAIN_ARGS... --config.train.distributed=True

on all workers and shows worker 0's log. When the TPU is preempted it is created again and training
goes on from the last checkpoint in --workdir. Ends with the exit status of training. Interrupting
this script leaves training running; the same command attaches to it again.

  --name NAME        name of the TPU
  --zone ZONE        e.g. us-central2-b
  --type TYPE        accelerator type, e.g. v4-8, v4-32, v5litepod-16
  --version VERSION  TPU software version (default: tpu-ubuntu2204-base)
  --project PROJECT  Google Cloud project (default: gcloud's own)
  --spot             cheaper capacity that can be preempted
  --delete           delete the TPU and stop; checkpoints in --workdir stay
  --dry-run          print every command and run none
  --help             print this

TRAIN_ARGS must hold --workdir gs://BUCKET/FOLDER, or /PATH, absolute, on storage that all workers see and
that outlives the TPU: a network file system or a mounted bucket. With gs:// anywhere in TRAIN_ARGS
requirements-gcs.txt is installed too. The TPU is not deleted when training ends: use --delete.

Example:
  launch/tpu.sh --name affect --zone us-central2-b --type v4-32 --spot -- \
    --config configs/base.py --workdir gs://bucket/affect
USAGE
}

die() {
  echo "error: $*" >&2
  exit 2
}

log() {
  echo "[tpu.sh] $*" >&2
}

retry_seconds=${TPU_RETRY_SECONDS:-60}
stopped_early=75  # exit status of a training that saved its state because it was asked to stop
escaped_quote="'\\''"
name='' zone='' type='' version='tpu-ubuntu2204-base' project='' workdir=''
spot=0 delete=0 dry_run=0
train_args=()

parse_args() {
  while (($#)); do
    case $1 in
      --name | --zone | --type | --version | --project)
        [[ -n ${2:-} && $2 != --* ]] || die "$1 needs a value; see --help"
        printf -v "${1#--}" '%s' "$2"
        shift 2
        ;;
      --spot) spot=1; shift ;;
      --delete) delete=1; shift ;;
      --dry-run) dry_run=1; shift ;;
      --help | -h) usage; exit 0 ;;
      --) shift; train_args=("$@"); break ;;
      *) die "unknown argument '$1'; training arguments go after --, see --help" ;;
    esac
  done
  [[ -n $name ]] || die 'give the TPU a name with --name'
  [[ -n $zone ]] || die 'give the zone with --zone, e.g. us-central2-b'
  if ((delete)); then
    [[ ${#train_args[@]} == 0 ]] || die '--delete takes no training arguments'
    return
  fi
  [[ -n $type ]] || die 'give the accelerator type with --type, e.g. v4-8'
  local previous='' arg
  for arg in ${train_args[@]+"${train_args[@]}"}; do
    [[ $previous == --workdir ]] && workdir=$arg
    [[ $arg == --workdir=* ]] && workdir=${arg#--workdir=}
    previous=$arg
  done
  [[ $workdir == /?* || $workdir == gs://?* ]] ||
    die 'training needs --workdir /PATH (absolute, on shared storage) or gs://BUCKET/FOLDER after --, to resume elsewhere'
}

# Runs a command, or prints it in a form that a shell would take.
run() {
  if ! ((dry_run)); then
    "$@"
    return
  fi
  local word text=''
  for word in "$@"; do
    [[ $word =~ ^[a-zA-Z0-9_./:=@%+,~-]+$ ]] || word="'${word//\'/$escaped_quote}'"
    text+=" $word"
  done
  echo "${text# }"
}

# tpu VERB ARGS...: one gcloud command on this TPU.
tpu() {
  local verb=$1
  shift
  local where=(--zone="$zone")
  [[ -z $project ]] || where+=(--project="$project")
  run gcloud compute tpus tpu-vm "$verb" "$@" "${where[@]}" --quiet
}

# on WORKER COMMAND: runs a shell command on worker 0, or on 'all'.
on() {
  # Without stdin: ssh would swallow whatever feeds this script.
  tpu ssh "$name" --worker="$1" --command="$2" </dev/null
}

create() {
  local options=(--accelerator-type="$type" --version="$version")
  if ((spot)); then options+=(--spot); fi
  tpu create "$name" "${options[@]}"
}

# Prints READY, PREEMPTED, ... as gcloud has it, MISSING, or UNREACHABLE if gcloud itself failed.
tpu_state() {
  local answer
  if answer=$(tpu describe "$name" --format='value(state)' 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* || $answer == *'not found'* ]]; then
    echo MISSING
  else
    echo "$answer" >&2
    echo UNREACHABLE
  fi
}

copy_and_install() {
  local repo archive requirements=requirements.txt
  [[ ${train_args[*]} != *gs://* ]] || requirements=requirements-gcs.txt
  repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=${TMPDIR:-/tmp}/affectcodec-$name.tar.gz
  run tar -czf "$archive" -C "$repo" --exclude=./.git --exclude=__pycache__ --exclude='./.venv*' \
    --exclude=./venv --exclude=./runs --exclude=node_modules --exclude=./web/dist --exclude=./web/public . || return
  tpu scp "$archive" "$name:affectcodec.tar.gz" --worker=all || return
  # The image's Python is older than JAX wants: uv brings its own.
  on all 'set -e
rm -rf ~/affectcodec && mkdir ~/affectcodec && tar -xzf ~/affectcodec.tar.gz -C ~/affectcodec
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv
test -x ~/env/bin/python || ~/.local/bin/uv venv --quiet --python 3.12 ~/env
cd ~/affectcodec
~/.local/bin/uv pip install --quiet --python ~/env/bin/python "jax[tpu]" -r '"$requirements"
}

start_training() {
  local quoted
  printf -v quoted ' %q' "${train_args[@]}" --config.train.distributed=True
  # Ends what another worker's failure may have left, then starts anew, detached from ssh so that a
  # dropped connection does not end it. train.exit marks the end.
  on all "cd ~/affectcodec || exit
test -s ~/train.pid && kill -- -\$(cat ~/train.pid) 2> /dev/null && sleep 10 &&
  kill -9 -- -\$(cat ~/train.pid) 2> /dev/null
rm -f ~/train.exit
setsid nohup bash -c '~/env/bin/python -m affectcodec_jax.train \"\$@\" > ~/train.log 2>&1
echo \$? > ~/train.exit' train$quoted > /dev/null 2>&1 < /dev/null &
echo \$! > ~/train.pid"
}

# Prints the exit status of training on worker 0, 'running' or 'none'.
status_command='if test -s ~/train.exit; then cat ~/train.exit
elif test -s ~/train.pid && kill -0 "$(cat ~/train.pid)" 2> /dev/null; then echo running
else echo none; fi'

# The same from here, or 'unreachable'. The last line: gcloud may print notices before it.
training_status() {
  local answer
  answer=$(on 0 "$status_command") || answer=unreachable
  echo "${answer##*$'\n'}"
}

# Shows worker 0's log until training ends: stream LINES, the lines of the past to show first.
stream() {
  on 0 "tail -n $1 -F ~/train.log --pid=\$(cat ~/train.pid)" || true  # the caller looks why
}

dry_run_plan() {
  echo '# look for the TPU, and create it if it is missing'
  tpu describe "$name" --format='value(state)'
  create
  echo '# copy the repository and install'
  copy_and_install
  echo '# train'
  start_training
  stream +1
  echo '# how did it end?'
  on 0 "$status_command"
  echo '# after a preemption: delete the TPU, then again from its creation on'
  tpu delete "$name"
}

main() {
  parse_args "$@"
  ((dry_run)) || command -v gcloud >/dev/null ||
    die 'gcloud is not installed; see cloud.google.com/sdk'
  if ((delete)); then
    tpu delete "$name"
    return
  fi
  if ((dry_run)); then
    dry_run_plan
    return
  fi

  local attached=0 checked=0 failures=0 history=+1 state status
  while true; do
    state=$(tpu_state)
    case $state in
      READY) ;;
      MISSING)
        log "creating $name ($type)"
        # A first failure is the user's to read (quota, type, zone); later ones lack capacity.
        if ! create; then
          ((attached)) || exit 1
          sleep "$retry_seconds"
        fi
        continue
        ;;
      PREEMPTED | TERMINATED)
        log "$name is $state: deleting it to create it again"
        tpu delete "$name" || sleep "$retry_seconds"
        continue
        ;;
      STOPPED | STOPPING) die "$name is $state; start it with gcloud, or remove it with --delete" ;;
      *)
        [[ $state != UNREACHABLE ]] || ((attached)) || exit 1
        log "$name is $state: waiting"
        sleep "$retry_seconds"
        continue
        ;;
    esac

    status=$(training_status)
    if [[ $status == unreachable ]]; then
      log 'worker 0 does not answer: waiting'
      sleep "$retry_seconds"
      continue
    fi
    if [[ $status =~ ^[0-9]+$ && $status != "$stopped_early" ]] && ((attached)); then
      # A preemption ends training a moment before the TPU says so.
      if ! ((checked)); then
        checked=1
        sleep "$retry_seconds"
        continue
      fi
      log "training ended with status $status"
      exit "$status"
    fi
    if [[ $status == running ]]; then
      log "attaching to the training that runs on $name"
    else
      log 'copying, installing and starting training'
      if ! { copy_and_install && start_training; }; then
        # Either the TPU went away or the installation fails for good: look again, a few times.
        ((++failures < 5)) || die 'the workers could not be set up in 5 attempts; see above'
        sleep "$retry_seconds"
        continue
      fi
      history=+1
    fi
    failures=0 checked=0 attached=1
    stream "$history"
    history=20
  done
}

main "$@"
