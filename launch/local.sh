#!/usr/bin/env bash
# Trains in several processes on this machine: a rehearsal of many hosts, or one process a GPU.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: launch/local.sh N TRAIN_ARGS...

Starts N processes of

  python -m affectcodec_jax.train TRAIN_ARGS... --config.train.distributed=True

that find each other through jax.distributed on a free port of this machine. Process 0 prints and writes
metrics; the others write WORKDIR/process_I.log. With NVIDIA GPUs process I sees GPU I only, of those that
CUDA_VISIBLE_DEVICES names if it is set; without, each process computes on CPU. TERM or Ctrl-C to this script
reaches all of them: they save at the same step and end.

Ends with 0 when all have, with 75 when training was asked to stop before its end (the same command goes
on from there), and else with the first other status; when one process fails the others are stopped.

Example:
  launch/local.sh 2 --config configs/base.py --workdir runs/two
USAGE
}

die() {
  echo "error: $*" >&2
  exit 2
}

[[ ${1:-} != --help && ${1:-} != -h ]] || { usage; exit 0; }
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || die 'the first argument is the number of processes; see --help'
count=$1
shift
workdir=''
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir=*) workdir=${!i#*=} ;;
    --workdir) j=$((i + 1)); workdir=${!j:-} ;;
  esac
done
[[ -n $workdir ]] || die 'give --workdir: one folder that all processes share'
[[ $workdir != *://* ]] || die "$workdir: give a folder of this machine, where these processes keep their logs"
mkdir -p "$workdir"

if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
  IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
else
  mapfile -t gpus < <(nvidia-smi --list-gpus 2> /dev/null | grep . | awk '{print NR - 1}')
fi
((${#gpus[@]} == 0 || ${#gpus[@]} >= count)) || die "$count processes, but ${#gpus[@]} GPUs; one process needs one"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count

pids=()
for ((i = 0; i < count; i++)); do
  if ((i)); then exec {out}>> "$workdir/process_$i.log"; else exec {out}>&1; fi
  if ((${#gpus[@]})); then export CUDA_VISIBLE_DEVICES=${gpus[i]}; fi
  JAX_PROCESS_ID=$i python -m affectcodec_jax.train "$@" --config.train.distributed=True >&"$out" 2>&1 &
  pids+=($!)
  exec {out}>&-
done
trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' TERM INT

status=0
running=("${pids[@]}")
while ((${#running[@]})); do
  sleep 1
  left=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2> /dev/null; then
      left+=("$pid")
      continue
    fi
    ended=0
    wait "$pid" || ended=$?
    if ((ended != 0 && status == 0)); then
      status=$ended
      # 75: all of them stop at the same step. Anything else: the others would wait for ever.
      ((ended == 75)) || kill -TERM "${pids[@]}" 2> /dev/null || true
    fi
  done
  running=("${left[@]+"${left[@]}"}")
done
exit "$status"
