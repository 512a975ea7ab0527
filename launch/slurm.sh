#!/usr/bin/env bash
# Trains on a GPU cluster with Slurm: one process per GPU, or one per node.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config=FILE [--config.KEY=VALUE ...]
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=1 launch/slurm.sh --config=FILE ...    one per node
#
# Submit from the repository's root. .venv and out_dir must be on a file system that all nodes share (the
# environment needs the extra "gpu": pip install -c launch/constraints.txt -e ".[gpu]"). JAX gets the
# coordinator and the process ids from Slurm's variables. Two minutes before the time limit all processes
# get SIGTERM, so that they save, and the job is queued again, as after a preemption; the run then resumes
# from out_dir. A run that fails ends the job with its exit status.
#
#   VENV=DIR MODULE=inf_jax.evaluate sbatch ...     another environment, another command
#   launch/slurm.sh --dry-run --config=FILE ...     prints the srun command, also outside Slurm
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
    *) die "$argument: unknown argument; use --config=FILE, --config.KEY=VALUE, --dry-run or --help" ;;
  esac
done
[[ " ${arguments[*]}" == *" --config="* ]] || die "--config=FILE is missing: what to train"

# sbatch runs a copy of this file from its spool directory; the job was submitted in the repository.
if [[ -n ${SLURM_SUBMIT_DIR:-} ]]; then cd "$SLURM_SUBMIT_DIR"; fi
[[ -f launch/slurm.sh ]] || die "submit from the repository's root, not from $PWD"
python=${VENV:-.venv}/bin/python
srun=(srun --kill-on-bad-exit=1 --wait=60 --label "$python" -u -m "${MODULE:-inf_jax.train}" "${arguments[@]}")

# JAX would take one GPU per process; a process alone on its node gets all of them.
tasks=${SLURM_NTASKS_PER_NODE:-1} gpus=${SLURM_GPUS_ON_NODE:-1}
if ((tasks == 1 && gpus > 1)); then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
elif ((tasks > 1 && tasks != gpus)); then
  die "$tasks processes and $gpus GPUs per node: --ntasks-per-node must be 1 or equal to --gpus-per-node"
fi
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} PYTHONUNBUFFERED=1

if [[ -n $dry_run ]]; then
  printf '%q ' "${srun[@]}"
  printf '\n'
  exit 0
fi
[[ -n ${SLURM_JOB_ID:-} ]] || die "not in a Slurm job: use sbatch launch/slurm.sh ..., or --dry-run"
[[ -x $python ]] || die "$PWD/$python is missing: create the environment, then pip install -c launch/constraints.txt -e '.[gpu]'"

ending='' step=''
# srun passes SIGTERM to every process
trap 'ending=yes; kill -TERM "$step" 2>/dev/null || true' USR1 TERM

printf '== %s job %s on %s, start %s\n' "$(date -u +%FT%TZ)" "$SLURM_JOB_ID" "${SLURM_JOB_NODELIST:-?}" \
  "${SLURM_RESTART_COUNT:-0}"
"${srun[@]}" &
step=$!
[[ -z $ending ]] || kill -TERM "$step" # the signal came before srun was started
status=0
wait "$step" || status=$?
if [[ -n $ending ]]; then # wait returned because of the signal; now wait for the checkpoint
  status=0
  wait "$step" || status=$?
  printf '== stopped early (status %d), queued again\n' "$status"
  scontrol requeue "$SLURM_JOB_ID" || true # after a preemption Slurm has done so already
elif ((status == 75)); then
  printf '== hung: the stacks are in out_dir; queued again\n'
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
