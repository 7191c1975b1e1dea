#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster:  sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh TRAIN_ARGS...
#
# One process a GPU, eight a node: on nodes of N GPUs give --ntasks-per-node=N as well. jax.distributed finds the
# others through Slurm. Two minutes before its time is up, and when it is preempted, the job saves at a common step,
# ends with 75 and is queued again; it goes on from there.
# TRAIN_ARGS must hold --workdir on storage that all nodes see. VENV names a virtual environment to activate.
#SBATCH --job-name=affectcodec
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

if (($# == 0)) || [[ $1 == --help || $1 == -h ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit 0
fi
[[ -n ${SLURM_JOB_ID:-} ]] || { echo 'error: start it with sbatch (see --help)' >&2; exit 2; }
[[ " $* " == *' --workdir'* ]] || { echo 'error: give --workdir on storage that all nodes see' >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-.}"
if [[ -n ${VENV:-} ]]; then
  . "$VENV/bin/activate"
fi

# A task sees one GPU, which is its number 0: JAX would look for the number of the task.
export JAX_LOCAL_DEVICE_IDS=0
status=0
srun --kill-on-bad-exit=0 --gpus-per-task=1 --gpu-bind=single:1 \
  python -m affectcodec_jax.train "$@" --config.train.distributed=True || status=$?
if ((status == 75)); then  # asked to stop before its end
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
