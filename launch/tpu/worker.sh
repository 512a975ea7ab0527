#!/usr/bin/env bash
# Part of launch/tpu.sh that runs on each worker of a pod, over ssh: worker.sh COMMAND SLICE [ARGUMENT ...]
#
# Every line of output begins with [SLICE.WORKER], since workers share a stream; the last one is rc=STATUS,
# and a worker without it has not answered. The script itself always exits with 0, because gcloud starts no
# further workers once one has failed.
#
#   setup COMMIT                code.tar.gz -> src at COMMIT, venv with the pinned versions
#   preflight BUCKET GIB CLOCK DEVICES WORKERS SECONDS       checks what a run needs; prints "facts ..."
#   start TOKEN MODULE [ARGUMENT ...]    starts a detached run, once per TOKEN
#   status | logs LINES | stop SECONDS | profile
#
# All files are in ~/inf_jax_pod: code.tar.gz, secrets.env (mode 600), src, venv, run.{log,pid,rc,...}.
set -euo pipefail

readonly uv_version=0.13.9 python_version=3.11 # the Python of launch/constraints.txt
readonly pinned=(src/launch/constraints.txt src/launch/constraints_tpu.txt)
base=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly base uv=$base/uv/bin/uv python=$base/venv/bin/python lock=$base/run.lock

fail() {
  printf 'error: %s\n' "$*"
  exit 1
}
metadata() { # metadata PATH [CURL OPTION ...]
  local path=$1
  shift
  curl -sf --max-time 5 "$@" -H Metadata-Flavor:Google \
    "http://metadata.google.internal/computeMetadata/v1/instance/$path"
}
worker_number() { metadata attributes/agent-worker-number || hostname | sed 's/.*-w-//'; }
# The run and its children hold the lock. Unlike a pid, it cannot be mistaken for that of another process.
running() { ! flock -n "$lock" true; }

setup() { # setup COMMIT
  local commit=$1 wanted
  cd "$base"
  if [[ -e secrets.env ]]; then chmod 600 secrets.env; fi
  if running; then
    [[ $(git -C src rev-parse HEAD) == "$commit" ]] || fail "a run of another commit is active: launch/tpu.sh stop, then setup"
    echo "a run of this commit is active, nothing to do"
    return
  fi

  rm -rf code.git src.new
  if ! tar -xzf code.tar.gz || ! git -C code.git fsck --no-progress >fsck.log 2>&1; then
    fail "code.tar.gz is incomplete; run setup again"
  fi
  git clone -q code.git src.new
  git -C src.new checkout -q --detach "$commit" || fail "code.tar.gz does not contain commit $commit; run setup again"
  rm -rf src
  mv src.new src

  wanted=$({ cat src/setup.py "${pinned[@]}" src/launch/tpu/worker.sh; } | sha256sum)
  if [[ $(cat venv.state 2>/dev/null || true) == "$wanted" ]] && "$python" -c ''; then
    echo "commit $commit, environment up to date"
    return
  fi
  rm -rf venv venv.state
  if ! [[ -x $uv ]]; then # the Python of the TPU images is too old, so uv installs one
    python3 -m pip install -q --disable-pip-version-check --target "$base/uv" "uv==$uv_version" ||
      curl -LsSf "https://astral.sh/uv/$uv_version/install.sh" | UV_UNMANAGED_INSTALL=${uv%/uv} sh ||
      fail "uv $uv_version could not be installed; does this worker have internet access (Cloud NAT)?"
  fi
  "$uv" venv -q --managed-python --python "$python_version" venv || fail "uv could not create the environment"
  (cd src && "$uv" pip install -q --python "$python" --compile-bytecode -b launch/constraints.txt \
    -c launch/constraints.txt -c launch/constraints_tpu.txt -e '.[tpu]') ||
    fail "the installation failed, see above; fix it and run setup again"
  echo "$wanted" >venv.state
  echo "commit $commit, environment installed"
}

# Installed packages as name==version with normalised names, without the project itself.
installed() { "$uv" pip freeze --python "$python" | grep -v '^-e\|^inf[-_]jax' | normalised; }
normalised() { tr 'A-Z_' 'a-z-' | LC_ALL=C sort; }
version() { sed -n "s/^$1==//p" "$base/packages"; }

clock_offset() { # whole seconds by which this clock is ahead of the metadata server's
  local theirs
  theirs=$(metadata '' -o /dev/null -D - | tr -d '\r' | sed -n 's/^[Dd]ate: //p')
  [[ -n $theirs ]] || fail "the metadata server does not answer; is this a Cloud TPU worker?"
  echo $(($(date +%s) - $(date -d "$theirs" +%s)))
}

preflight() { # preflight BUCKET GIB CLOCK DEVICES WORKERS SECONDS
  local bucket=$1 gib=$2 clock=$3 devices=$4 workers=$5 limit=$6 free offset other counts status=0
  cd "$base"
  if running; then fail "a run is active and holds the TPU: launch/tpu.sh stop, then preflight"; fi
  [[ -e venv.state ]] || fail "this worker is not set up: launch/tpu.sh setup"
  [[ -z $(git -C src status --porcelain) ]] || fail "src was modified by hand; run setup again"

  installed >packages
  other=$(grep -hv '^#' "${pinned[@]}" | normalised | LC_ALL=C comm -13 - packages)
  [[ -z $other ]] || fail "not the pinned versions: ${other//$'\n'/ }; remove ~/inf_jax_pod/venv and run setup again"
  free=$(($(df -Pk "$base" | awk 'NR == 2 {print $4}') / 1048576))
  ((free >= gib)) || fail "$free GiB of disk are free, $gib are required (--disk-gib); are there old files in \$HOME?"
  offset=$(clock_offset) || fail "${offset#error: }"
  ((offset <= clock && -offset <= clock)) ||
    fail "the clock is $offset s off (allowed: --clock-seconds=$clock); restart the time service"

  counts=$(BUCKET=$bucket WORKERS=$workers LIMIT=$limit LABEL=$label timeout -k 5 "$limit" "$python" - 2>preflight.log <<'PYTHON'
import os

bucket = os.environ["BUCKET"]
if bucket:
    from inf_jax.io import storage
    from inf_jax.core.errors import UserError

    try:
        storage.check_access(storage.as_path(f"{bucket}/.preflight/{os.environ['LABEL']}"))
    except UserError as error:
        raise SystemExit(str(error)) from None
import jax

if int(os.environ["WORKERS"]) > 1:
    jax.distributed.initialize(initialization_timeout=int(os.environ["LIMIT"]))
print(jax.local_device_count(), jax.device_count(), jax.process_count())
PYTHON
  ) || status=$?
  if ((status == 124 || status == 137)); then
    fail "the TPU did not answer in $limit s: a worker is missing, or another process holds the chips"
  elif ((status)); then
    fail "$(tail -n 1 preflight.log)"
  fi
  read -r local_devices global_devices processes <<<"$counts"
  if [[ $global_devices != "$devices" || $processes != "$workers" ]]; then
    fail "$global_devices devices in $processes processes, expected $devices in $workers:" \
      "a worker is missing; delete and create the pod, or check --type and --slices"
  fi
  echo "facts commit=$(git -C src rev-parse HEAD) python=$("$python" -c 'import platform; print(platform.python_version())')" \
    "jax=$(version jax) libtpu=$(version libtpu) packages=$(sha256sum <packages | cut -c -12)" \
    "local_devices=$local_devices disk_gib=$free clock=$offset"
}

start() { # start TOKEN MODULE [ARGUMENT ...]
  local token=$1 i
  shift
  cd "$base"
  [[ -e venv.state ]] || fail "this worker is not set up: launch/tpu.sh setup"
  if [[ $(cat run.token 2>/dev/null || true) == "$token" ]]; then
    echo "started already"
    return
  fi
  if running; then fail "a run is active: launch/tpu.sh stop, then train"; fi
  rm -f run.pid run.rc
  setsid bash "$base/worker.sh" supervise - "$@" </dev/null >>run.log 2>&1 9>"$lock" &
  for ((i = 0; i < 600; i++)); do
    if [[ -s run.pid ]]; then
      echo "$token" >run.token
      echo "started, pid $(cat run.pid)"
      return
    fi
    sleep 0.05
  done
  fail "the run did not start: $(tail -n 1 run.log)"
}

supervise() { # supervise MODULE [ARGUMENT ...]: child of start, detached from ssh; holds the lock
  flock -w 5 9
  echo "$$" >"$base/run.group" # setsid made this shell the leader of its process group
  cd "$base/src"
  set -a
  # shellcheck source=/dev/null
  if [[ -e $base/secrets.env ]]; then source "$base/secrets.env"; fi
  set +a
  printf '== %s started: python -m' "$(date -u +%FT%TZ)"
  printf ' %q' "$@"
  printf '\n'
  "$python" -u -m "$@" &
  echo "$!" >"$base/run.pid"
  local rc=0
  wait "$!" || rc=$?
  echo "$rc" >"$base/run.rc.new"
  mv "$base/run.rc.new" "$base/run.rc"
}

status() {
  cd "$base"
  local state=none
  if running; then
    state="running pid=$(cat run.pid)"
  elif [[ -e run.rc ]]; then
    state="ended status=$(cat run.rc)"
  elif [[ -e run.pid ]]; then
    state="lost" # killed together with its supervisor, or the worker was rebooted
  fi
  echo "state $state"
  if [[ -e run.log ]]; then echo "log $(tail -n 1 run.log | cut -c -200)"; fi
}

logs() { # logs LINES
  [[ -e $base/run.log ]] || fail "there is no log: no run was started here"
  tail -n "$1" "$base/run.log"
}

stop() { # stop SECONDS: SIGTERM, so that the run saves; after SECONDS, SIGKILL to its process group
  cd "$base"
  local pid deadline=$((SECONDS + $1))
  if ! running; then
    echo "no run is active"
    return
  fi
  pid=$(cat run.pid)
  kill -TERM "$pid" 2>/dev/null || true
  while running; do
    if ((SECONDS >= deadline)); then
      kill -KILL -- "-$(cat run.group)" 2>/dev/null || true
      echo "did not end within $1 s, killed"
      return
    fi
    sleep 0.2
  done
  echo "stopped"
}

profile() { # SIGUSR1, but only if the process handles it: otherwise it would end the run
  cd "$base"
  if ! running; then fail "no run is active: launch/tpu.sh train first"; fi
  local pid caught
  pid=$(cat run.pid)
  caught=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$pid/status")
  (((16#$caught >> 9) & 1)) ||
    fail "the run does not listen for SIGUSR1 (yet, or not at this commit): no trace"
  kill -USR1 "$pid"
  echo "trace requested"
}

command=$1 slice=$2
shift 2
if [[ $command == supervise ]]; then
  supervise "$@"
  exit
fi
label=$slice.$(worker_number)
{
  set +e
  (
    set -e
    "$command" "$@"
  ) 2>&1
  echo "rc=$?"
} | sed "s/^/[$label] /"
