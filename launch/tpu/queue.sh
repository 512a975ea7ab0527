#!/usr/bin/env bash
# Part of launch/tpu.sh: queued resources and their nodes. A pod is one queued resource of the pod's
# name; its slices are nodes, found by the label inf_jax_pod.
#
# States: MISSING, what gcloud says (WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED, ...),
# and GONE here for an ACTIVE pod with a node that is preempted, terminated or no longer there.
# shellcheck disable=SC2034,SC2154 # variables shared by the parts
set -euo pipefail

readonly passing='UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED|[Tt]imed out|[Cc]onnection (reset|refused|aborted)|Temporary failure|HTTPError 5[0-9][0-9]'
readonly not_found='NOT_FOUND|was not found|does not exist'
made='' # set while a pod that this call asked for is of no use to anybody: deleted on the way out
hosts='' # of a slice, where the type is known
child='' # pid of a part that runs in a subshell
assumed=ACTIVE # under --dry-run: what the state would be

print_command() { # as it can be pasted
  local word line=''
  for word in "$@"; do
    if ! [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then word=${word@Q}; fi
    line+=" $word"
  done
  printf '%s\n' "${line# }" >&3
}

# location FLAGS: of every gcloud call. --quiet: no question is ever asked.
location() {
  where=(--zone="${settings[ZONE]}" --quiet)
  if [[ -n ${settings[PROJECT]} ]]; then where+=(--project="${settings[PROJECT]}"); fi
}

# gc COMMAND...: one gcloud call that is neither ssh nor scp. What passes by itself is tried again.
# Its errors are in $tmp/error, its answer on stdout.
gc() {
  local try status
  if [[ -n ${settings[DRY_RUN]} ]]; then
    print_command gcloud "$@"
    return
  fi
  for ((try = 1; ; try++)); do
    status=0
    timeout -k 10 "${settings[SSH_SECONDS]}" gcloud "$@" 2>"$tmp/error" </dev/null || status=$?
    if ((status == 0)); then return; fi
    if ((status == 124)); then echo "timed out after ${settings[SSH_SECONDS]} s" >>"$tmp/error"; fi
    if ((try >= settings[TRIES])) || ! grep -qE "$passing${also_passing:+|$also_passing}" "$tmp/error"; then return "$status"; fi
    back_off "$try" "gcloud: $(reason "$tmp/error")"
  done
}

back_off() { # back_off TRY WHY
  local seconds
  seconds=$(awk -v s="${settings[RETRY_SECONDS]}" -v n="$1" 'BEGIN {s *= 2 ^ (n - 1); print s < 300 ? s : 300}')
  say "$2; again in $seconds s (try $1 of ${settings[TRIES]})"
  sleep "$seconds"
}

reason() { # the line of gcloud's errors that says most
  { grep -m 1 'ERROR' "$1" || grep -v '^[[:space:]]*$' "$1" | tail -n 1; } | cut -c -300
}

# remedy FILE: what to do about gcloud's errors in FILE.
remedy() {
  case $(cat "$1") in
    *ssh-add* | *SSHKeyNotInAgent*) echo "start an ssh-agent and ssh-add ~/.ssh/google_compute_engine" ;;
    *RESOURCE_EXHAUSTED* | *[Qq]uota*)
      echo "ask for quota of tpu.googleapis.com (console: IAM, Quotas), delete what else holds it" \
        "(gcloud compute tpus queued-resources list), or change --zone, --type or spot/reserved"
      ;;
    *[Rr]eauth* | *"auth login"* | *UNAUTHENTICATED*) echo "gcloud auth login" ;;
    *PERMISSION_DENIED* | *" 403"*)
      echo "you need roles/tpu.admin and roles/iam.serviceAccountUser in the project, and the TPU API in it:" \
        "gcloud services enable tpu.googleapis.com"
      ;;
    *INVALID_ARGUMENT*)
      echo "compare --type, --version and --zone with gcloud compute tpus accelerator-types list --zone=${settings[ZONE]}"
      ;;
    *) echo "see gcloud's message; launch/tpu.sh status" ;;
  esac
}

die_of() { # die_of STATUS WHAT: with gcloud's reason and its remedy
  die "$1" "$2: $(reason "$tmp/error"); remedy: $(remedy "$tmp/error")"
}

# check_type: image, devices of the pod, hosts of a slice. The number in a type's name counts cores up to
# v5p, two a chip; a chip is one device from v4 on. A slice of one host has up to 8 chips of v5e and v6e.
check_type() {
  local type=${settings[TYPE]} size image
  [[ -n $type ]] || usage "--type is missing, such as v5litepod-256"
  [[ $type =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-([1-9][0-9]*)$ ]] ||
    usage "--type=$type: v2-N, v3-N, v4-N, v5litepod-N, v5p-N or v6e-N"
  size=${BASH_REMATCH[2]}
  case $type in
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    *) image=tpu-ubuntu2204-base ;;
  esac
  case $type in
    v4-* | v5p-*) hosts=$((size = size / 2, size < 4 ? 1 : size / 4)) ;;
    v2-* | v3-*) hosts=$((size / 8)) ;;
    *) hosts=$((size <= 8 ? 1 : size / 4)) ;;
  esac
  settings[VERSION]=${settings[VERSION]:-$image}
  devices=$((size * settings[SLICES]))
}

# pod_state: of the queued resource. An error that is not "there is none" ends the script: taking a fault
# for a missing pod would ask for a second one.
pod_state() {
  local state
  location
  if ! state=$(gc compute tpus queued-resources describe "${settings[NAME]}" \
    --format='value(state.state)' "${where[@]}"); then
    grep -qE "$not_found" "$tmp/error" || die_of 1 "the state of ${settings[NAME]} is not known"
    state=MISSING
  fi
  if [[ -n ${settings[DRY_RUN]} ]]; then state=$assumed; fi
  echo "${state:-UNKNOWN}"
}

# nodes: lines "NODE STATE WORKERS" of the pod's slices, in order.
nodes() {
  local list i
  location
  list=$(gc compute tpus tpu-vm list --format='value(name.basename(),state,networkEndpoints.len(),labels.inf_jax_pod)' \
    "${where[@]}") || die_of 1 "the slices of ${settings[NAME]} are not known"
  if [[ -n ${settings[DRY_RUN]} ]]; then
    if [[ $assumed == MISSING ]]; then return; fi
    for ((i = 0; i < settings[SLICES]; i++)); do echo "$(node_name "$i") READY ${hosts:-1}"; done
    return
  fi
  awk -v pod="${settings[NAME]}" '$4 == pod {print $1, $2, $3}' <<<"$list" | sort -V
}

node_name() { if ((settings[SLICES] == 1)); then echo "${settings[NAME]}"; else echo "${settings[NAME]}-$1"; fi; }

# pod_health: pod_state, or GONE. Looked at twice: a list that came incomplete ends no run.
pod_health() {
  local state list look
  for look in 1 2; do
    state=$(pod_state)
    if [[ $state != ACTIVE ]]; then break; fi
    list=$(nodes)
    if (($(grep -c . <<<"$list") >= settings[SLICES])) &&
      ! grep -qE ' (PREEMPTED|TERMINATED|STOPPED|DELETING) ' <<<"$list"; then break; fi
    state=GONE
    if ((look == 1)); then sleep "${settings[RETRY_SECONDS]}"; fi
  done
  echo "$state"
}

cmd_create() {
  local state
  state=$(pod_state)
  [[ $state == MISSING ]] || die 1 "${settings[NAME]} is there already ($state): use it, or launch/tpu.sh delete, or another --name"
  create_pod
  made=''
  say "${settings[NAME]} is asked for; next: launch/tpu.sh wait"
}

create_pod() {
  local track=() request=(--accelerator-type="${settings[TYPE]}" --runtime-version="${settings[VERSION]}") labels
  location
  if ((settings[SLICES] == 1)); then
    request+=(--node-id="${settings[NAME]}")
  else
    request+=(--node-count="${settings[SLICES]}" --node-prefix="${settings[NAME]}")
  fi
  labels=inf_jax_pod=${settings[NAME]}
  request+=(--labels="$labels${settings[LABELS]:+,${settings[LABELS]}}")
  case ${settings[TIER]} in
    spot) request+=(--spot) ;;
    reserved) request+=(--reserved) ;;
    flex-start) # in gcloud's alpha track only
      track=(alpha)
      request+=(--provisioning-model=flex-start --max-run-duration="${settings[MAX_RUN]}")
      ;;
  esac
  if [[ -n ${settings[VALID_UNTIL]} ]]; then request+=(--valid-until-duration="${settings[VALID_UNTIL]}"); fi
  if [[ ${settings[ACCESS]} != external ]]; then request+=(--internal-ips); fi
  if [[ -n ${settings[NETWORK]} ]]; then request+=(--network="${settings[NETWORK]}"); fi
  if [[ -n ${settings[SUBNETWORK]} ]]; then request+=(--subnetwork="${settings[SUBNETWORK]}"); fi
  if [[ -n ${settings[SERVICE_ACCOUNT]} ]]; then request+=(--service-account="${settings[SERVICE_ACCOUNT]}"); fi

  made=yes
  say "asking for ${settings[SLICES]} x ${settings[TYPE]}, ${settings[TIER]}, in ${settings[ZONE]}"
  gc "${track[@]}" compute tpus queued-resources create "${settings[NAME]}" "${request[@]}" "${where[@]}" >&2 ||
    grep -q ALREADY_EXISTS "$tmp/error" || # of a first try whose answer was lost
    die_of 1 "${settings[NAME]} was not created"
  assumed=ACTIVE
}

pause() { # between two looks; the end of a subshell whose script was killed
  sleep "${settings[POLL_SECONDS]}"
  kill -0 "$$" 2>/dev/null || exit
}

cmd_wait() { wait_for_pod; }

wait_for_pod() { # until ACTIVE with all slices READY
  local state='' last='' list error
  while true; do
    state=$(pod_health)
    if [[ $state == ACTIVE ]]; then
      list=$(nodes)
      if ! grep -qvE '^[^ ]+ READY ' <<<"$list"; then break; fi
      state="ACTIVE, slices not ready yet"
    fi
    if [[ $state != "$last" ]]; then say "$(date +%T) ${settings[NAME]}: $state"; fi
    last=$state
    case $state in
      MISSING) die 1 "${settings[NAME]} does not exist: launch/tpu.sh create" ;;
      FAILED)
        error=$(gc compute tpus queued-resources describe "${settings[NAME]}" \
          --format='value(state.failedData.error.message)' "${where[@]}") || true
        printf '%s\n' "${error:=no reason given (--valid-until has passed, or no capacity)}" >"$tmp/error"
        die_of 3 "the queue gave ${settings[NAME]} up"
        ;;
      SUSPENDING | SUSPENDED | DELETING | GONE)
        die 3 "${settings[NAME]} is gone ($state): launch/tpu.sh delete, then create; or run, which does both"
        ;;
    esac
    pause
  done
  say "$(date +%T) ${settings[NAME]}: ACTIVE"
}

# left_over: what is listed of the pod, "queued-resource STATE" and "NODE STATE".
left_over() {
  local list
  location
  list=$(gc compute tpus queued-resources list --format='value(name.basename(),state.state)' "${where[@]}") ||
    die_of 1 "what is left of ${settings[NAME]} is not known, it may cost money"
  awk -v pod="${settings[NAME]}" '$1 == pod {print "queued-resource", $2}' <<<"$list"
  nodes | awk '{print $1, $2}'
}

cmd_delete() { delete_pod; }

delete_pod() {
  local try left kind rest
  location
  for ((try = 1; ; try++)); do
    if [[ -n ${settings[DRY_RUN]} ]]; then left="queued-resource ACTIVE"; else left=$(left_over) || exit; fi
    [[ -n $left ]] || break
    if [[ $left == queued-resource\ * ]]; then # --force: its nodes too
      gc compute tpus queued-resources delete "${settings[NAME]}" --force "${where[@]}" >&2 ||
        say "delete: $(reason "$tmp/error")"
    else
      while read -r kind rest; do
        gc compute tpus tpu-vm delete "$kind" "${where[@]}" >&2 || say "delete $kind: $(reason "$tmp/error")"
      done <<<"$left"
    fi
    if [[ -n ${settings[DRY_RUN]} ]]; then
      assumed=MISSING
      left_over
      break
    fi
    left=$(left_over) || exit
    [[ -n $left ]] || break
    ((try < settings[TRIES])) ||
      die 1 "of ${settings[NAME]} there is still: ${left//$'\n'/, }; it costs money: launch/tpu.sh delete again," \
        "or in the console (Compute Engine, TPUs)"
    back_off "$try" "still there: ${left//$'\n'/, }"
  done
  made=''
  say "nothing of ${settings[NAME]} is left"
}

# leave STATUS: at every end of the script. A pod that is of no use to anybody is not left behind.
leave() {
  local status=$1
  trap '' INT TERM HUP # the deletion is not cut short
  trap - EXIT
  if [[ -n $child ]]; then kill "$child" 2>/dev/null || true; fi
  if [[ -n $made && -z ${settings[KEEP]} && -z ${settings[DRY_RUN]} ]]; then
    say "deleting ${settings[NAME]}: nothing runs on it"
    (delete_pod) || status=1
  fi
  rm -rf "$tmp"
  exit "$status"
}
