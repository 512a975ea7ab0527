#!/usr/bin/env bash
# What launch/tpu.sh runs on each worker of a pod, over ssh: worker.sh COMMAND SLICE [ARGUMENT ...]
#
# Each line of output begins with [SLICE.WORKER], the last one is rc=STATUS: several workers share a
# stream, and a worker without that line has not answered. The script's own status is always 0, since
# gcloud starts no further worker once one has failed.
#
#   setup COMMIT                code.tar.gz -> src at COMMIT, venv with the pinned versions
#   preflight BUCKET GIB CLOCK DEVICES WORKERS SECONDS       what a run needs; prints "facts ..."
#   start TOKEN MODULE [ARGUMENT ...]    detached; a start with the same TOKEN finds it done
#   status | logs LINES | stop SECONDS | profile
#
# All is in ~/inf_jax_pod: code.tar.gz, secrets.env (mode 600), src, venv, run.{log,pid,rc,...}.
set -euo pipefail

readonly uv_version=0.13.9 python_version=3.11 # the Python that launch/constraints.txt was made with
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
# The run and its children hold the lock; that also tells a dead run's pid from another process's.
running() { ! flock -n "$lock" true; }

setup() { # setup COMMIT
  local commit=$1 wanted
  cd "$base"
  if [[ -e secrets.env ]]; then chmod 600 secrets.env; fi
  if running; then
    [[ $(git -C src rev-parse HEAD) == "$commit" ]] || fail "a run of another commit is active; stop it first"
    echo "a run of this commit is active, nothing to do"
    return
  fi

  rm -rf code.git src.new
  if ! tar -xzf code.tar.gz || ! git -C code.git fsck --no-progress >fsck.log 2>&1; then
    fail "code.tar.gz did not arrive whole; run setup again"
  fi
  git clone -q code.git src.new
  git -C src.new checkout -q --detach "$commit" || fail "code.tar.gz has no commit $commit; run setup again"
  rm -rf src
  mv src.new src

  wanted=$({ cat src/setup.py src/launch/constraints*.txt src/launch/tpu/worker.sh; } | sha256sum)
  if [[ $(cat venv.state 2>/dev/null || true) == "$wanted" ]] && "$python" -c ''; then
    echo "commit $commit, environment up to date"
    return
  fi
  rm -rf venv venv.state
  if ! [[ -x $uv ]]; then # the images' own Python is older than this package needs, so uv brings one
    python3 -m pip install -q --disable-pip-version-check --target "$base/uv" "uv==$uv_version" ||
      curl -LsSf "https://astral.sh/uv/$uv_version/install.sh" | UV_UNMANAGED_INSTALL=${uv%/uv} sh ||
      fail "uv $uv_version could not be installed; has this worker a way to the internet (Cloud NAT)?"
  fi
  "$uv" venv -q --managed-python --python "$python_version" venv || fail "uv could not make the environment"
  (cd src && "$uv" pip install -q --python "$python" --compile-bytecode -b launch/constraints.txt \
    -c launch/constraints.txt -c launch/constraints_tpu.txt -e '.[tpu]') ||
    fail "the install failed, see above; run setup again when that is mended"
  echo "$wanted" >venv.state
  echo "commit $commit, environment installed"
}

# Installed packages as name==version, spelled as pip compares them; the project itself left out.
installed() { "$uv" pip freeze --python "$python" | grep -v '^-e\|^inf[-_]jax' | spelled; }
spelled() { tr 'A-Z_' 'a-z-' | LC_ALL=C sort; }
version() { sed -n "s/^$1==//p" "$base/packages"; }

clock_offset() { # seconds by which this clock is ahead of the machine's host; to a second
  local theirs
  theirs=$(metadata '' -o /dev/null -D - | tr -d '\r' | sed -n 's/^[Dd]ate: //p')
  [[ -n $theirs ]] || fail "the metadata server gives no time; is this a Cloud TPU worker?"
  echo $(($(date +%s) - $(date -d "$theirs" +%s)))
}

preflight() { # preflight BUCKET GIB CLOCK DEVICES WORKERS SECONDS
  local bucket=$1 gib=$2 clock=$3 devices=$4 workers=$5 limit=$6 free offset other found status=0
  cd "$base"
  if running; then fail "a run is active and holds the TPU: launch/tpu.sh stop, then preflight"; fi
  [[ -e venv.state ]] || fail "not set up: launch/tpu.sh setup"
  [[ -z $(git -C src status --porcelain) ]] || fail "src was changed by hand; run setup again"

  installed >packages
  other=$(grep -hv '^#' src/launch/constraints*.txt | spelled | LC_ALL=C comm -13 - packages)
  [[ -z $other ]] || fail "not the pinned versions: ${other//$'\n'/ }; remove ~/inf_jax_pod/venv, run setup again"
  free=$(($(df -Pk "$base" | awk 'NR == 2 {print $4}') / 1048576))
  ((free >= gib)) || fail "$free GiB of disk are free, $gib are wanted (--disk-gib); old files in \$HOME?"
  offset=$(clock_offset) || fail "${offset#error: }"
  ((offset <= clock && -offset <= clock)) ||
    fail "the clock is $offset s off (at most --clock-seconds=$clock); restart its time service"

  found=$(BUCKET=$bucket WORKERS=$workers LIMIT=$limit LABEL=$label timeout -k 5 "$limit" "$python" - 2>preflight.log <<'PYTHON'
import os

bucket = os.environ["BUCKET"]
if bucket:
    from inf_jax.io import storage
    from inf_jax.core.errors import UserError

    try:
        storage.check(storage.as_path(f"{bucket}/.preflight/{os.environ['LABEL']}"))
    except UserError as error:
        raise SystemExit(str(error)) from None
import jax

if int(os.environ["WORKERS"]) > 1:
    jax.distributed.initialize(initialization_timeout=int(os.environ["LIMIT"]))
print(jax.local_device_count(), jax.device_count(), jax.process_count())
PYTHON
  ) || status=$?
  if ((status == 124 || status == 137)); then
    fail "no answer from the TPU in $limit s: another worker is missing, or a process holds the chips"
  elif ((status)); then
    fail "$(tail -n 1 preflight.log)"
  fi
  read -r local_devices global_devices processes <<<"$found"
  if [[ $global_devices != "$devices" || $processes != "$workers" ]]; then
    fail "$global_devices devices in $processes processes, $devices in $workers are expected:" \
      "a worker has fallen out; delete and create the pod, or check --type and --slices"
  fi
  echo "facts commit=$(git -C src rev-parse HEAD) python=$("$python" -c 'import platform; print(platform.python_version())')" \
    "jax=$(version jax) libtpu=$(version libtpu) packages=$(sha256sum <packages | cut -c -12)" \
    "local_devices=$local_devices disk_gib=$free clock=$offset"
}

start() { # start TOKEN MODULE [ARGUMENT ...]
  local token=$1 i
  shift
  cd "$base"
  [[ -e venv.state ]] || fail "not set up: launch/tpu.sh setup"
  if [[ $(cat run.token 2>/dev/null || true) == "$token" ]]; then
    echo "started already"
    return
  fi
  if running; then fail "a run is active: launch/tpu.sh stop, then train"; fi
  rm -f run.pid run.rc
  setsid bash "$base/worker.sh" supervise - "$@" </dev/null >>run.log 2>&1 9>"$lock" &
  for ((i = 0; i < 200; i++)); do
    if [[ -s run.pid ]]; then
      echo "$token" >run.token
      echo "started, pid $(cat run.pid)"
      return
    fi
    sleep 0.05
  done
  fail "the run did not start: $(tail -n 1 run.log)"
}

supervise() { # supervise MODULE [ARGUMENT ...]: start's child, detached from ssh, holds the lock
  flock -w 5 9
  echo "$$" >"$base/run.group" # started by setsid: this shell leads it
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
    state="lost" # killed with its supervisor, or the worker was restarted
  fi
  echo "state $state"
  if [[ -e run.log ]]; then echo "log $(tail -n 1 run.log | cut -c -200)"; fi
}

logs() { # logs LINES
  [[ -e $base/run.log ]] || fail "no log: nothing was started here"
  tail -n "$1" "$base/run.log"
}

stop() { # stop SECONDS: SIGTERM, so that the run saves; SIGKILL to all of it after that time
  cd "$base"
  local pid deadline=$((SECONDS + $1))
  if ! running; then
    echo "nothing runs"
    return
  fi
  pid=$(cat run.pid)
  kill -TERM "$pid" 2>/dev/null || true
  while running; do
    if ((SECONDS >= deadline)); then
      kill -KILL -- "-$(cat run.group)" 2>/dev/null || true
      echo "did not end in $1 s, killed"
      return
    fi
    sleep 0.2
  done
  echo "stopped"
}

profile() { # SIGUSR1, but only to a process that catches it: else it would end the run
  cd "$base"
  if ! running; then fail "nothing runs: launch/tpu.sh train first"; fi
  local pid caught
  pid=$(cat run.pid)
  caught=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$pid/status")
  (((16#$caught >> 9) & 1)) ||
    fail "the run does not listen for SIGUSR1 (yet, or this commit's never does): no trace"
  kill -USR1 "$pid"
  echo "trace asked for"
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
