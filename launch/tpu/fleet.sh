#!/usr/bin/env bash
# Part of launch/tpu.sh: all workers at once. One ssh a slice (--worker=all); each worker's answer ends
# with "[SLICE.WORKER] rc=STATUS" (worker.sh), and those that gave none are asked again, by number.
# shellcheck disable=SC2034,SC2154 # variables shared by the parts
set -euo pipefail

readonly remote_dir=inf_jax_pod
# shellcheck disable=SC2016
readonly hello='umask 077; mkdir -p inf_jax_pod; w=$(curl -sf --max-time 5 -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number || hostname | sed "s/.*-w-//"); echo "[@SLICE@.$w] rc=0"'
silent='' # workers that did not answer the last question, SLICE.WORKER
failed='' # those that answered with a status above 0

# reach: track and flags by which workers are reached. IAP is in gcloud's alpha track only.
reach() {
  location
  track=()
  reach_flags=("${where[@]}" --strict-host-key-checking=no)
  case ${settings[ACCESS]} in
    internal) reach_flags+=(--internal-ip) ;;
    iap)
      track=(alpha)
      reach_flags+=(--tunnel-through-iap)
      ;;
  esac
}

# ssh_workers NODE WORKERS SECONDS COMMAND: COMMAND is a line for the workers' shell.
ssh_workers() {
  reach
  local call=(gcloud "${track[@]}" compute tpus tpu-vm ssh "$1" --worker="$2" "${reach_flags[@]}"
    --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=15 --command="$4")
  if [[ -n ${settings[DRY_RUN]} ]]; then
    print_command "${call[@]}"
  else
    timeout -k 10 "$3" "${call[@]}" </dev/null
  fi
}

# on_worker ARGUMENT...: the line that runs worker.sh; @SLICE@ becomes the slice's number.
on_worker() {
  printf 'bash %s/worker.sh %q @SLICE@' "$remote_dir" "$1"
  shift
  if (($#)); then printf ' %q' "$@"; fi
}

# roster WHICH: $tmp/roster, lines "SLICE NODE WORKER"; WHICH is all or SLICE.WORKER.
roster() {
  local list node state count slice=0 worker
  list=$(nodes)
  : >"$tmp/roster"
  while read -r node state count; do
    [[ -n $node ]] || continue
    [[ $state == READY ]] || die 3 "slice $node is $state: launch/tpu.sh status"
    for ((worker = 0; worker < count; worker++)); do echo "$slice $node $worker" >>"$tmp/roster"; done
    slice=$((slice + 1))
  done <<<"$list"
  ((slice == settings[SLICES])) ||
    die 3 "${settings[NAME]} has $slice slices, --slices=${settings[SLICES]} are expected: launch/tpu.sh status"
  cp "$tmp/roster" "$tmp/pod"
  if [[ $1 != all ]]; then
    if [[ -n ${settings[DRY_RUN]} ]]; then
      echo "${1%.*} $(node_name "${1%.*}") ${1#*.}" >"$tmp/roster"
    else
      awk -v one="$1" '$1 "." $3 == one' "$tmp/pod" >"$tmp/roster"
    fi
    [[ -s $tmp/roster ]] || usage "--worker=$1: there is no such worker"
  fi
}

# ask SECONDS LINE: LINE on all workers of the roster; answers in $tmp/answers, sorted by worker.
# Status: 0 all well, 1 some $failed, 4 some $silent after $TRIES tries.
ask() {
  local seconds=$1 line=$2 tries=${3:-${settings[TRIES]}} try slice node workers all
  cp "$tmp/roster" "$tmp/todo"
  : >"$tmp/answers"
  for ((try = 1; ; try++)); do
    rm -f "$tmp"/out.* "$tmp"/err.*
    while read -r slice node; do
      workers=$(awk -v s="$slice" '$1 == s {print $3}' "$tmp/todo" | paste -sd,)
      all=$(awk -v s="$slice" '$1 == s {print $3}' "$tmp/pod" | paste -sd,)
      if [[ $workers == "$all" ]]; then workers=all; fi
      ssh_workers "$node" "$workers" "$seconds" "${line//@SLICE@/$slice}" >"$tmp/out.$slice" 2>"$tmp/err.$slice" &
      if [[ -n ${settings[DRY_RUN]} ]]; then wait; fi # in order
    done < <(awk '{print $1, $2}' "$tmp/todo" | sort -u)
    wait
    if [[ -n ${settings[DRY_RUN]} ]]; then return; fi
    # whole answers only: of the others the beginning would come twice
    cat "$tmp"/out.* >"$tmp/out"
    awk 'NR == FNR {if ($0 ~ /^\[[0-9]+\.[0-9]+\] rc=[0-9]+$/) whole[$1]; next} $1 in whole' \
      "$tmp/out" "$tmp/out" >>"$tmp/answers"
    awk 'FILENAME == ARGV[1] {if ($2 ~ /^rc=/) whole[$1]; next} !("[" $1 "." $3 "]" in whole)' "$tmp/answers" "$tmp/todo" >"$tmp/left"
    mv "$tmp/left" "$tmp/todo"
    silent=$(awk '{print $1 "." $3}' "$tmp/todo" | paste -sd' ')
    if [[ -z $silent ]] || ((try >= tries)); then break; fi
    back_off "$try" "no answer from $silent"
  done
  cat "$tmp"/err.* >"$tmp/error"
  sort -s -V -k 1,1 -o "$tmp/answers" "$tmp/answers"
  failed=$(awk '$2 ~ /^rc=/ && $2 != "rc=0" {gsub(/[][]/, "", $1); print $1}' "$tmp/answers" | paste -sd' ')
  if [[ -n $silent ]]; then return 4; fi
  [[ -z $failed ]]
}

# demand WHAT SECONDS LINE: ask, and the end of the script where a worker fails or stays silent.
demand() {
  local status=0
  ask "$2" "$3" || status=$?
  case $status in
    1) die 1 "$1 failed on $failed: $(first_error)" ;;
    4)
      die 4 "$1: no answer from worker $silent in ${settings[TRIES]} tries ($(reason "$tmp/error"));" \
        "remedy: $(remedy "$tmp/error"); a dead worker: launch/tpu.sh delete, create (run does both)"
      ;;
  esac
}

# first_error: what most of the failed say; of one that gives no reason, its last line.
first_error() {
  local said
  said=$(sed -n 's/^\[[0-9.]*\] error: //p' "$tmp/answers" | sort | uniq -c | sort -rn | sed 's/^ *[0-9]* //')
  if [[ -z $said ]]; then said=$(grep -F "[${failed%% *}]" "$tmp/answers" | grep -v '\] rc=' | tail -n 1); fi
  head -n 1 <<<"$said"
}
answers() { grep -v '\] rc=[0-9]*$' "$tmp/answers" || true; } # what workers said

# check_secrets: each is set here; their values appear in no command line and no output.
check_secrets() {
  local name
  for name in ${settings[SECRETS]//,/ }; do
    [[ $name =~ ^[A-Z_][A-Z0-9_]*$ ]] || usage "--secrets takes names of variables (capitals), not values"
    [[ -v $name ]] || usage "--secrets: $name is not set in your environment"
  done
}

# here COMMAND...: a command of this machine that --dry-run shows
here() { if [[ -n ${settings[DRY_RUN]} ]]; then print_command "$@"; else "$@"; fi; }

# pack_code: $tmp/code.tar.gz, $commit. One commit without its history; git tells on the worker
# whether it is that commit and nothing else.
pack_code() {
  local dirty
  dirty=$(git -C "$root" status --porcelain) || die 1 "$root is no git checkout: workers get a commit of it"
  commit=$(git -C "$root" rev-parse HEAD)
  if [[ -n $dirty && -z ${settings[ALLOW_DIRTY]} ]]; then
    die 1 "uncommitted changes ($(head -n 3 <<<"$dirty" | paste -sd, | tr -s ' ')): commit them, or --allow-dirty sends them along"
  elif [[ -n $dirty && -z ${settings[DRY_RUN]} ]]; then # a commit of its own; branch and index stay as they are
    cp "$(git -C "$root" rev-parse --path-format=absolute --git-path index)" "$tmp/index"
    GIT_INDEX_FILE=$tmp/index git -C "$root" add -A
    commit=$(git -C "$root" -c user.name=tpu.sh -c user.email=tpu.sh@localhost commit-tree -p HEAD \
      -m "uncommitted changes" "$(GIT_INDEX_FILE=$tmp/index git -C "$root" write-tree)")
  fi
  check_config_file
  here mkdir -p -m 700 "$tmp"
  here git init -q --bare "$tmp/code.git"
  here git -C "$tmp/code.git" fetch -q --depth=1 --upload-pack='git -c uploadpack.allowAnySHA1InWant=true upload-pack' \
    "file://$root" "$commit:refs/heads/pod" || die 1 "commit $commit could not be packed, see above"
  here tar -czf "$tmp/code.tar.gz" -C "$tmp" code.git
}

check_config_file() { # the workers have what is committed, not what lies about here
  local file=${train_args[0]:-}
  file=${file#--config=}
  file=${file%%:*}
  [[ $file != /* ]] || usage "$file: a config within the repository, such as configs/medquad_minilm.py"
  if [[ -n $file ]] && ! git -C "$root" cat-file -e "$commit:$file" 2>/dev/null; then
    die 1 "$file is not in commit $commit: commit it"
  fi
}

write_secrets() { # into a file, by builtins only
  local name
  if [[ -n ${settings[DRY_RUN]} ]]; then
    echo "(umask 077; : >$tmp/secrets.env)" >&3
    for name in ${settings[SECRETS]//,/ }; do
      # shellcheck disable=SC2016
      printf 'printf "%%s=%%q\\n" %s "$%s" >>%s\n' "$name" "$name" "$tmp/secrets.env" >&3
    done
    return
  fi
  (
    umask 077
    : >"$tmp/secrets.env"
    for name in ${settings[SECRETS]//,/ }; do printf '%s=%q\n' "$name" "${!name}" >>"$tmp/secrets.env"; done
  )
}

copy_files() { # code, worker.sh and secrets onto all workers of a slice, at once
  local node try all files=("$tmp/code.tar.gz" "$root/launch/tpu/worker.sh" "$tmp/secrets.env")
  reach
  mapfile -t all < <(awk '{print $2}' "$tmp/roster" | sort -u -V)
  for node in "${all[@]}"; do
    local call=(gcloud "${track[@]}" compute tpus tpu-vm scp "${files[@]}" "$node:$remote_dir/" --worker=all "${reach_flags[@]}"
      --scp-flag=-oConnectTimeout=20)
    if [[ -n ${settings[DRY_RUN]} ]]; then
      print_command "${call[@]}"
      continue
    fi
    for ((try = 1; ; try++)); do
      if timeout -k 10 "${settings[SSH_SECONDS]}" "${call[@]}" </dev/null >"$tmp/scp" 2>"$tmp/error"; then break; fi
      ((try < settings[TRIES])) || die_of 4 "setup: copying to $node failed"
      back_off "$try" "copying to $node: $(reason "$tmp/error")"
    done
  done
}

cmd_setup() {
  pack_code
  roster all
  demand setup "${settings[SSH_SECONDS]}" "$hello"
  install_all
}

install_all() {
  write_secrets
  copy_files
  rm -f "$tmp/secrets.env"
  say "setting up $(grep -c . "$tmp/roster") workers: commit $commit"
  demand setup "${settings[SETUP_SECONDS]}" "$(on_worker setup "$commit")"
  say "set up: all workers are at $commit"
}

cmd_preflight() {
  local key groups workers
  roster all
  workers=$(grep -c . "$tmp/roster")
  demand preflight "$((settings[PREFLIGHT_SECONDS] + 120))" "$(on_worker preflight "${settings[BUCKET]}" "${settings[DISK_GIB]}" \
    "${settings[CLOCK_SECONDS]}" "$devices" "$workers" "${settings[PREFLIGHT_SECONDS]}")"
  if [[ -n ${settings[DRY_RUN]} ]]; then return; fi
  for key in commit python jax libtpu packages local_devices; do
    groups=$(sed -n "s/^\[\([0-9.]*\)\] facts .*\b$key=\([^ ]*\).*/\2 \1/p" "$tmp/answers" |
      awk '{on[$1] = on[$1] " " $2} END {for (v in on) print v " on" on[v]}' | sort)
    if (($(grep -c . <<<"$groups") != 1)); then
      die 1 "preflight: $key is not the same on all workers: ${groups//$'\n'/; }; remedy: launch/tpu.sh setup"
    fi
  done
  say "preflight: $workers workers, $devices devices, $(answers | sed -n '1s/^.*facts //p')"
}
