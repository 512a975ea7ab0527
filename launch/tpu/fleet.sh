#!/usr/bin/env bash
# Part of launch/tpu.sh: runs a command on all workers, and setup and preflight with it. One ssh call per
# slice (--worker=all). The answer of each worker ends with "[SLICE.WORKER] rc=STATUS" (see worker.sh);
# workers without that line are tried again, by number.
# shellcheck disable=SC2034,SC2154 # variables shared with launch/tpu.sh and its other parts
set -euo pipefail

readonly remote_dir=inf_jax_pod
# shellcheck disable=SC2016
readonly ping='umask 077; mkdir -p inf_jax_pod; w=$(curl -sf --max-time 5 -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number || hostname | sed "s/.*-w-//"); echo "[@SLICE@.$w] rc=0"'
silent='' # workers that did not answer the last command, SLICE.WORKER
failed='' # workers that answered with a status above 0

# reach: $track and $reach_flags of ssh and scp. IAP exists in gcloud's alpha track only.
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

# ssh_workers NODE WORKERS SECONDS LINE: runs a shell command line on workers of a node.
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

# on_worker COMMAND [ARGUMENT...]: the command line that runs worker.sh; `ask` replaces @SLICE@.
on_worker() {
  printf 'bash %s/worker.sh %q @SLICE@' "$remote_dir" "$1"
  shift
  if (($#)); then printf ' %q' "$@"; fi
}

# list_workers WHICH: writes $tmp/workers, lines "SLICE NODE WORKER"; WHICH is all or SLICE.WORKER.
list_workers() {
  local list node state count slice=0 worker
  list=$(nodes)
  : >"$tmp/workers"
  while read -r node state count; do
    [[ -n $node ]] || continue
    [[ $state == READY ]] || die 3 "slice $node is $state: launch/tpu.sh status"
    for ((worker = 0; worker < count; worker++)); do echo "$slice $node $worker" >>"$tmp/workers"; done
    slice=$((slice + 1))
  done <<<"$list"
  ((slice == settings[SLICES])) ||
    die 3 "${settings[NAME]} has $slice slices, but --slices=${settings[SLICES]}: launch/tpu.sh status"
  cp "$tmp/workers" "$tmp/pod"
  if [[ $1 != all ]]; then
    if [[ -n ${settings[DRY_RUN]} ]]; then
      echo "${1%.*} $(node_name "${1%.*}") ${1#*.}" >"$tmp/workers"
    else
      awk -v one="$1" '$1 "." $3 == one' "$tmp/pod" >"$tmp/workers"
    fi
    [[ -s $tmp/workers ]] || usage "--worker=$1: no such worker"
  fi
}

# ask SECONDS LINE [TRIES]: runs LINE on the listed workers; $tmp/answers gets the answers, sorted by worker.
# Status: 0 all succeeded, 1 some $failed, 4 some $silent after all tries.
ask() {
  local seconds=$1 line=$2 tries=${3:-${settings[TRIES]}} try slice node workers all
  cp "$tmp/workers" "$tmp/todo"
  : >"$tmp/answers"
  for ((try = 1; ; try++)); do
    rm -f "$tmp"/out.* "$tmp"/err.*
    while read -r slice node; do
      workers=$(awk -v s="$slice" '$1 == s {print $3}' "$tmp/todo" | paste -sd,)
      all=$(awk -v s="$slice" '$1 == s {print $3}' "$tmp/pod" | paste -sd,)
      if [[ $workers == "$all" ]]; then workers=all; fi
      ssh_workers "$node" "$workers" "$seconds" "${line//@SLICE@/$slice}" >"$tmp/out.$slice" 2>"$tmp/err.$slice" &
      if [[ -n ${settings[DRY_RUN]} ]]; then wait; fi # one after another
    done < <(awk '{print $1, $2}' "$tmp/todo" | sort -u)
    wait
    if [[ -n ${settings[DRY_RUN]} ]]; then return; fi
    # complete answers only: the others are asked for again as a whole
    cat "$tmp"/out.* >"$tmp/out"
    awk 'NR == FNR {if ($0 ~ /^\[[0-9]+\.[0-9]+\] rc=[0-9]+$/) complete[$1]; next} $1 in complete' \
      "$tmp/out" "$tmp/out" >>"$tmp/answers"
    awk 'FILENAME == ARGV[1] {if ($2 ~ /^rc=/) complete[$1]; next} !("[" $1 "." $3 "]" in complete)' "$tmp/answers" "$tmp/todo" >"$tmp/left"
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

# require NAME SECONDS LINE: ask, but ends the script if a worker fails or does not answer.
require() {
  local status=0
  ask "$2" "$3" || status=$?
  case $status in
    1) die 1 "$1 failed on $failed: $(first_error)" ;;
    4)
      die 4 "$1: no answer from worker $silent in ${settings[TRIES]} tries ($(reason "$tmp/error"));" \
        "remedy: $(remedy "$tmp/error"); if a worker is dead: launch/tpu.sh delete, create (run does both)"
      ;;
  esac
}

# first_error: the most frequent error of the failed workers; without any, the last line of the first one.
first_error() {
  local said
  said=$(sed -n 's/^\[[0-9.]*\] error: //p' "$tmp/answers" | sort | uniq -c | sort -rn | sed 's/^ *[0-9]* //')
  if [[ -z $said ]]; then said=$(grep -F "[${failed%% *}]" "$tmp/answers" | grep -v '\] rc=' | tail -n 1); fi
  head -n 1 <<<"$said"
}
answers() { grep -v '\] rc=[0-9]*$' "$tmp/answers" || true; } # their lines without the status

# check_secrets: each is set in the environment. Their values appear in no command line and no output.
check_secrets() {
  local name
  for name in ${settings[SECRETS]//,/ }; do
    [[ $name =~ ^[A-Z_][A-Z0-9_]*$ ]] || usage "--secrets takes names of variables (capital letters), not values"
    [[ -v $name ]] || usage "--secrets: $name is not set in your environment"
  done
}

# here COMMAND...: runs a local command, or prints it under --dry-run
here() { if [[ -n ${settings[DRY_RUN]} ]]; then print_command "$@"; else "$@"; fi; }

# pack_code: writes $tmp/code.tar.gz and sets $commit. It is a git repository of that one commit, so that
# git can verify the files on the worker.
pack_code() {
  local dirty
  dirty=$(git -C "$root" status --porcelain) || die 1 "$root is not a git repository: workers get a commit of it"
  commit=$(git -C "$root" rev-parse HEAD)
  if [[ -n $dirty && -z ${settings[ALLOW_DIRTY]} ]]; then
    die 1 "uncommitted changes ($(head -n 3 <<<"$dirty" | paste -sd, | tr -s ' ')): commit them, or send them with --allow-dirty"
  elif [[ -n $dirty && -z ${settings[DRY_RUN]} ]]; then # in a commit that leaves branch and index alone
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

check_config_file() { # the workers have committed files only
  local file=${train_args[0]:-}
  file=${file#--config=}
  file=${file%%:*}
  [[ $file != /* ]] || usage "$file: give a config within the repository, such as configs/medquad_minilm.py"
  if [[ -n $file ]] && ! git -C "$root" cat-file -e "$commit:$file" 2>/dev/null; then
    die 1 "$file is not in commit $commit: commit it first"
  fi
}

write_secrets() { # to $tmp/secrets.env, with shell builtins only
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

copy_files() { # code, worker.sh and secrets to all workers
  local node try all files=("$tmp/code.tar.gz" "$root/launch/tpu/worker.sh" "$tmp/secrets.env")
  reach
  mapfile -t all < <(awk '{print $2}' "$tmp/workers" | sort -u -V)
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
  list_workers all
  require setup "${settings[SSH_SECONDS]}" "$ping"
  install_all
}

install_all() {
  write_secrets
  copy_files
  rm -f "$tmp/secrets.env"
  say "setting up $(grep -c . "$tmp/workers") workers: commit $commit"
  require setup "${settings[SETUP_SECONDS]}" "$(on_worker setup "$commit")"
  say "setup is done: all workers are at $commit"
}

cmd_preflight() {
  local key groups workers
  list_workers all
  workers=$(grep -c . "$tmp/workers")
  require preflight "$((settings[PREFLIGHT_SECONDS] + 120))" "$(on_worker preflight "${settings[BUCKET]}" "${settings[DISK_GIB]}" \
    "${settings[CLOCK_SECONDS]}" "$devices" "$workers" "${settings[PREFLIGHT_SECONDS]}")"
  if [[ -n ${settings[DRY_RUN]} ]]; then return; fi
  for key in commit python jax libtpu packages local_devices; do
    groups=$(sed -n "s/^\[\([0-9.]*\)\] facts .*\b$key=\([^ ]*\).*/\2 \1/p" "$tmp/answers" |
      awk '{on[$1] = on[$1] " " $2} END {for (v in on) print v " on" on[v]}' | sort)
    if (($(grep -c . <<<"$groups") != 1)); then
      die 1 "preflight: $key differs between workers: ${groups//$'\n'/; }; remedy: launch/tpu.sh setup"
    fi
  done
  say "preflight: $workers workers, $devices devices, $(answers | sed -n '1s/^.*facts //p')"
}
