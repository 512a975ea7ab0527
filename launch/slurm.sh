#!/usr/bin/env bash
# A run on a GPU cluster with Slurm: a process a GPU, or a node.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config=FILE [--config.KEY=VALUE ...]
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=1 launch/slurm.sh --config=FILE ...    a process a node
#
# Submit from the repository's root, with .venv made on a file system that all nodes see (extra "gpu":
# pip install -c launch/constraints.txt -e ".[gpu]"). JAX finds the coordinator and the ranks from Slurm's
# variables. Two minutes before the time limit all processes get SIGTERM, so that they save, and the job goes
# back into the queue, as it does after a preemption; the run resumes from out_dir, which all nodes see too.
# A run that fails ends the job with its status.
#
#   VENV=DIR MODULE=inf_jax.evaluate sbatch ...     another environment, another main
#   launch/slurm.sh --dry-run --config=FILE ...     shows the srun line, anywhere
#
#SBATCH --job-name=inf_jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

dry_run=''
arguments=()
for argument in "$@"; do
  case $argument in
    -h | --help)
      sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --dry-run) dry_run=yes ;;
    --config=* | --config.*=*) arguments+=("$argument") ;;
    *) die "$argument: only --config=FILE, --config.KEY=VALUE, --dry-run and --help are understood" ;;
  esac
done
[[ " ${arguments[*]}" == *" --config="* ]] || die "--config=FILE is missing: what to train"

# sbatch runs a copy of this file from its spool: the repository is where the job was submitted.
if [[ -n ${SLURM_SUBMIT_DIR:-} ]]; then cd "$SLURM_SUBMIT_DIR"; fi
[[ -f launch/slurm.sh ]] || die "submit from the repository's root, not from $PWD"
python=${VENV:-.venv}/bin/python
srun=(srun --kill-on-bad-exit=1 --wait=60 --label "$python" -u -m "${MODULE:-inf_jax.train}" "${arguments[@]}")

# Alone with its node's GPUs, a process has them all; JAX would take one a process.
tasks=${SLURM_NTASKS_PER_NODE:-1} gpus=${SLURM_GPUS_ON_NODE:-1}
if ((tasks == 1 && gpus > 1)); then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
elif ((tasks > 1 && tasks != gpus)); then
  die "$tasks processes and $gpus GPUs a node: --ntasks-per-node is 1, or --gpus-per-node"
fi
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} PYTHONUNBUFFERED=1

if [[ -n $dry_run ]]; then
  printf '%q ' "${srun[@]}"
  printf '\n'
  exit 0
fi
[[ -n ${SLURM_JOB_ID:-} ]] || die "not within a Slurm job: sbatch launch/slurm.sh ..., or --dry-run"
[[ -x $python ]] || die "$PWD/$python is not there: pip install -c launch/constraints.txt -e '.[gpu]' in it"

ending='' step=''
# srun hands SIGTERM on to every process
trap 'ending=yes; kill -TERM "$step" 2>/dev/null || true' USR1 TERM

printf '== %s job %s on %s, start %s\n' "$(date -u +%FT%TZ)" "$SLURM_JOB_ID" "${SLURM_JOB_NODELIST:-?}" \
  "${SLURM_RESTART_COUNT:-0}"
"${srun[@]}" &
step=$!
[[ -z $ending ]] || kill -TERM "$step" # the signal came before there was a step
status=0
wait "$step" || status=$?
if [[ -n $ending ]]; then # wait returned for the signal; now for the saving
  status=0
  wait "$step" || status=$?
  printf '== ended before its time (status %d), back into the queue\n' "$status"
  scontrol requeue "$SLURM_JOB_ID" || true # a preemption has done so already
elif ((status == 75)); then
  printf '== hung: the stacks are in out_dir; back into the queue\n'
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
