#!/usr/bin/env bash
# Rents a TPU pod through queued resources, trains on it, and gives it back.
#
#   launch/tpu.sh COMMAND [--SETTING=VALUE ...] [--config=FILE --config.KEY=VALUE ...]
#
#   run        everything: create, wait, setup, preflight, train, then watch; after a preemption or when a
#              worker dies, delete, create and resume, until the run is done; then delete (not with --keep).
#              Called again after its terminal was lost, it continues watching. Also called babysit.
#   create     request the pod                       wait       until it is ready
#   setup      install this commit, the pinned versions and the secrets on every worker
#   preflight  check all workers: same versions, device count, bucket writable, disk space, clocks
#   train      start the run on all workers, detached from the ssh connection
#   status     the queue, the slices, and the run on each worker
#   logs       last lines of all workers, or --worker=0.3 [--follow]   (SLICE.WORKER)
#   profile    write a profiler trace on --worker (default 0.0), if the run listens for SIGUSR1
#   stop       SIGTERM on all workers, so that the run saves; SIGKILL after --stop-seconds
#   delete     the pod and all its slices; repeats until none is listed
#
# Settings, as flags, or as NAME=VALUE lines of a file (--env=FILE; flags win; --zone is ZONE there):
#   --name --zone --project   name and zone are required; default project: gcloud's own
#   --type=v5litepod-256      --slices=1    --version=...    default: the image for the type
#   --spot | --reserved | --flex-start --max-run=2d    default: on demand     --valid-until=6h  give up after
#   --bucket=gs://B/DIR       the run's out_dir becomes gs://B/DIR/NAME, unless --config.out_dir is given
#   --secrets=WANDB_API_KEY,HF_TOKEN    environment variables for the run; never shown, file mode 600
#   --access=external|internal|iap      how workers are reached; the last two make a pod without external
#                                       addresses       --network --subnetwork --service-account --labels
#   --module=inf_jax.train    --allow-dirty   send uncommitted changes too    --keep   --lines=20
#   --max-restarts=3          after a failed run or an unusable pod; preemptions do not count
#   --disk-gib=20 --clock-seconds=5 --preflight-seconds=300 --setup-seconds=1800 --ssh-seconds=600
#   --stop-seconds=180 --poll-seconds=30 --retry-seconds=10 --tries=5   (also from the environment: TRIES=2)
#   --dry-run                 print every command, run none
#
# Exit status: 0 done; 1 failed, with a remedy; 2 wrong usage; 3 the pod is gone (preempted); 4 workers do
# not answer; 5 the run failed; 6 the run was asked to stop. launch/tpu.env.example is a settings file;
# launch/xpk.md describes the way over GKE.
# shellcheck disable=SC2034 # launch/tpu/*.sh use the variables too
set -euo pipefail
shopt -s inherit_errexit # errors within $(...) end the script too

say() { printf '%s\n' "$*" >&2; }
die() { # die STATUS MESSAGE...
  local status=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$status"
}
usage() { die 2 "$*; launch/tpu.sh --help"; }
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  die 1 "bash $BASH_VERSION is too old, 4.4 or newer is needed (macOS: brew install bash coreutils)"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
# shellcheck source=/dev/null
source "$root/launch/tpu/queue.sh"
# shellcheck source=/dev/null
source "$root/launch/tpu/fleet.sh"
# shellcheck source=/dev/null
source "$root/launch/tpu/run.sh"

# Every setting with its default. Those of `timing` may also come from the environment.
declare -A settings=(
  [NAME]='' [ZONE]='' [PROJECT]='' [TYPE]='' [VERSION]='' [SLICES]=1 [TIER]=on-demand [MAX_RUN]=''
  [VALID_UNTIL]='' [BUCKET]='' [SECRETS]='' [ACCESS]=external [NETWORK]='' [SUBNETWORK]=''
  [SERVICE_ACCOUNT]='' [LABELS]='' [MODULE]=inf_jax.train [WORKER]='' [LINES]=20 [MAX_RESTARTS]=3
  [ALLOW_DIRTY]='' [KEEP]='' [FOLLOW]='' [DRY_RUN]=''
)
declare -A timing=(
  [DISK_GIB]=20 [CLOCK_SECONDS]=5 [PREFLIGHT_SECONDS]=300 [SETUP_SECONDS]=1800 [SSH_SECONDS]=600
  [STOP_SECONDS]=180 [POLL_SECONDS]=30 [RETRY_SECONDS]=10 [TRIES]=5
)
for key in "${!timing[@]}"; do settings[$key]=${!key:-${timing[$key]}}; done
train_args=()

set_key() { # set_key NAME VALUE WHERE
  [[ -v settings[$1] ]] || usage "$3: no setting $1"
  settings[$1]=$2
}

read_env() { # read_env FILE: NAME=VALUE lines, # comments
  local line number=0
  [[ -r $1 ]] || usage "--env=$1 is missing or not readable"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
    [[ $line =~ ^([A-Z_]+)=(.*)$ ]] || usage "$1:$number: expected NAME=VALUE, not $line"
    if [[ ${BASH_REMATCH[1]} == CONFIG ]]; then
      train_args+=("--config=${BASH_REMATCH[2]}")
    else
      set_key "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" "$1:$number"
    fi
  done <"$1"
}

parse() {
  local argument key
  for argument in "$@"; do
    if [[ $argument == --env=* ]]; then read_env "${argument#*=}"; fi
  done
  for argument in "$@"; do
    case $argument in
      --env=*) ;;
      --config=*) # replaces the config of --env
        if [[ ${train_args[0]:-} == --config=* ]]; then train_args=("${train_args[@]:1}"); fi
        train_args=("$argument" "${train_args[@]}")
        ;;
      --config.*=*) train_args+=("$argument") ;;
      --spot | --reserved | --flex-start | --on-demand) settings[TIER]=${argument#--} ;;
      --allow-dirty | --keep | --follow | --dry-run)
        key=${argument#--}
        key=${key//-/_}
        settings[${key^^}]=yes
        ;;
      --*=*)
        key=${argument%%=*}
        key=${key#--}
        key=${key//-/_}
        set_key "${key^^}" "${argument#*=}" "$argument"
        ;;
      *) usage "$argument: unknown argument (flags are --SETTING=VALUE)" ;;
    esac
  done
}

check_settings() {
  local key
  for key in NAME ZONE; do
    [[ -n ${settings[$key]} ]] || usage "--${key,,} is missing"
  done
  [[ ${settings[NAME]} =~ ^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$ ]] ||
    usage "--name=${settings[NAME]}: at most 50 lower-case letters, digits and hyphens, starting with a letter"
  for key in SLICES LINES TRIES; do
    [[ ${settings[$key]} =~ ^[1-9][0-9]*$ ]] || usage "--${key,,}=${settings[$key]}: must be a whole number of at least 1"
  done
  for key in MAX_RESTARTS DISK_GIB CLOCK_SECONDS PREFLIGHT_SECONDS SETUP_SECONDS SSH_SECONDS STOP_SECONDS; do
    [[ ${settings[$key]} =~ ^[0-9]+$ ]] || usage "--${key,,}=${settings[$key]}: must be a whole number"
  done
  for key in POLL_SECONDS RETRY_SECONDS; do
    [[ ${settings[$key]} =~ ^[0-9]+(\.[0-9]+)?$ ]] || usage "--${key,,}=${settings[$key]}: must be a number"
  done
  [[ ${settings[TIER]} =~ ^(on-demand|spot|reserved|flex-start)$ ]] ||
    usage "TIER=${settings[TIER]}: must be on-demand, spot, reserved or flex-start"
  [[ ${settings[TIER]} != flex-start || -n ${settings[MAX_RUN]} ]] ||
    usage "--flex-start needs --max-run, at most 7d (such as --max-run=2d)"
  [[ ${settings[ACCESS]} =~ ^(external|internal|iap)$ ]] ||
    usage "--access=${settings[ACCESS]}: must be external, internal or iap"
  [[ -z ${settings[BUCKET]} || ${settings[BUCKET]} == gs://* ]] ||
    usage "--bucket=${settings[BUCKET]}: must be gs://BUCKET or gs://BUCKET/DIRECTORY"
  [[ -z ${settings[WORKER]} || ${settings[WORKER]} =~ ^(all|[0-9]+\.[0-9]+)$ ]] ||
    usage "--worker=${settings[WORKER]}: must be SLICE.WORKER, such as 0.3, or all"
}

# check_train_args COMMAND: requires a config, and puts out_dir into the bucket.
check_train_args() {
  local argument out_dir=''
  [[ ${train_args[0]:-} == --config=* ]] || usage "--config=FILE is missing: what to train"
  for argument in "${train_args[@]}"; do
    if [[ $argument == --config.out_dir=* ]]; then out_dir=${argument#*=}; fi
  done
  if [[ -z $out_dir && -n ${settings[BUCKET]} ]]; then
    out_dir=${settings[BUCKET]%/}/${settings[NAME]}
    train_args+=("--config.out_dir=$out_dir")
  fi
  [[ $1 != run || $out_dir == gs://* ]] ||
    usage "a preempted run resumes from a bucket: give --bucket=gs://... or --config.out_dir=gs://..."
}

main() {
  local command=${1:-}
  case $command in
    -h | --help | help)
      sed -n '2,/^set /{/^# shellcheck/d;/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    '') usage "a command is missing" ;;
    babysit) command=run ;;
    run | create | wait | setup | preflight | train | status | logs | profile | stop | delete) ;;
    *) usage "no command $command" ;;
  esac
  shift
  if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then main help; fi
  parse "$@"
  check_settings
  if [[ $command =~ ^(run|train)$ ]]; then check_train_args "$command"; fi
  if [[ $command =~ ^(run|create|preflight)$ ]]; then check_type; fi
  if [[ $command =~ ^(run|setup)$ ]]; then check_secrets; fi
  if [[ $command =~ ^(run|create)$ ]]; then assumed=MISSING; fi
  [[ -n ${settings[DRY_RUN]} ]] || command -v gcloud >/dev/null ||
    die 1 "gcloud is not on PATH: install https://cloud.google.com/sdk/docs/install, then gcloud auth login"

  exec 3>&1 # --dry-run prints here, also from within $(...)
  tmp=$(mktemp -d)
  trap 'leave "$?"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  "cmd_$command"
}

main "$@"
