#!/usr/bin/env bash
# Part of launch/tpu.sh: creates, queries and deletes a pod. A pod is one queued resource of the same name;
# its slices are nodes with the label inf_jax_pod.
#
# States of a pod: MISSING; those of gcloud (WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED,
# ...); and GONE, an ACTIVE pod with a node that is preempted, terminated or missing.
# shellcheck disable=SC2034,SC2154 # variables shared with launch/tpu.sh and its other parts
set -euo pipefail

readonly transient='UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED|[Tt]imed out|[Cc]onnection (reset|refused|aborted)|Temporary failure|HTTPError 5[0-9][0-9]'
readonly not_found='NOT_FOUND|was not found|does not exist'
made='' # set while this script has requested a pod on which nothing runs yet: deleted at exit
hosts='' # per slice, once the type is known
child='' # pid of the current subshell, see attempt
assumed=ACTIVE # the state of the pod under --dry-run

print_command() { # quoted for pasting into a shell
  local word line=''
  for word in "$@"; do
    if ! [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then word=${word@Q}; fi
    line+=" $word"
  done
  printf '%s\n' "${line# }" >&3
}

# location: $where, the flags of every gcloud call. --quiet: gcloud asks no questions.
location() {
  where=(--zone="${settings[ZONE]}" --quiet)
  if [[ -n ${settings[PROJECT]} ]]; then where+=(--project="${settings[PROJECT]}"); fi
}

# gc COMMAND...: one gcloud call other than ssh and scp. Transient errors are retried. Errors go to
# $tmp/error, the answer to stdout.
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
    if ((try >= settings[TRIES])) || ! grep -qE "$transient${also_transient:+|$also_transient}" "$tmp/error"; then return "$status"; fi
    back_off "$try" "gcloud: $(reason "$tmp/error")"
  done
}

back_off() { # back_off TRY REASON
  local seconds
  seconds=$(awk -v s="${settings[RETRY_SECONDS]}" -v n="$1" 'BEGIN {s *= 2 ^ (n - 1); print s < 300 ? s : 300}')
  say "$2; retrying in $seconds s (try $1 of ${settings[TRIES]})"
  sleep "$seconds"
}

reason() { # reason FILE: the most informative line of gcloud's errors
  { grep -m 1 'ERROR' "$1" || grep -v '^[[:space:]]*$' "$1" | tail -n 1; } | cut -c -300
}

# remedy FILE: what to do about the errors of gcloud in FILE.
remedy() {
  case $(cat "$1") in
    *ssh-add* | *SSHKeyNotInAgent*) echo "start an ssh-agent and run ssh-add ~/.ssh/google_compute_engine" ;;
    *RESOURCE_EXHAUSTED* | *[Qq]uota*)
      echo "request quota of tpu.googleapis.com (console: IAM, Quotas), delete what uses it" \
        "(gcloud compute tpus queued-resources list), or change --zone, --type or spot/reserved"
      ;;
    *[Rr]eauth* | *"auth login"* | *UNAUTHENTICATED*) echo "gcloud auth login" ;;
    *PERMISSION_DENIED* | *" 403"*)
      echo "you need roles/tpu.admin and roles/iam.serviceAccountUser in the project, and its TPU API:" \
        "gcloud services enable tpu.googleapis.com"
      ;;
    *INVALID_ARGUMENT*)
      echo "compare --type, --version and --zone with gcloud compute tpus accelerator-types list --zone=${settings[ZONE]}"
      ;;
    *) echo "see the message of gcloud, and launch/tpu.sh status" ;;
  esac
}

die_of() { # die_of STATUS MESSAGE: adds the reason in $tmp/error and its remedy
  die "$1" "$2: $(reason "$tmp/error"); remedy: $(remedy "$tmp/error")"
}

# check_type: image, $devices of the pod, $hosts per slice. The number in a type's name counts cores up to
# v5p (two per chip), then chips; from v4 on a chip is one device. One host has up to 8 chips of v5e and v6e.
check_type() {
  local type=${settings[TYPE]} size image
  [[ -n $type ]] || usage "--type is missing; for example --type=v5litepod-256"
  [[ $type =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-([1-9][0-9]*)$ ]] ||
    usage "--type=$type: must be v2-N, v3-N, v4-N, v5litepod-N, v5p-N or v6e-N"
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

# pod_state: state of the queued resource. An error other than "not found" ends the script: mistaking an
# outage for a missing pod would create a second one.
pod_state() {
  local state
  location
  if ! state=$(gc compute tpus queued-resources describe "${settings[NAME]}" \
    --format='value(state.state)' "${where[@]}"); then
    grep -qE "$not_found" "$tmp/error" || die_of 1 "the state of ${settings[NAME]} could not be queried"
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
    "${where[@]}") || die_of 1 "the slices of ${settings[NAME]} could not be listed"
  if [[ -n ${settings[DRY_RUN]} ]]; then
    if [[ $assumed == MISSING ]]; then return; fi
    for ((i = 0; i < settings[SLICES]; i++)); do echo "$(node_name "$i") READY ${hosts:-1}"; done
    return
  fi
  awk -v pod="${settings[NAME]}" '$4 == pod {print $1, $2, $3}' <<<"$list" | sort -V
}

node_name() { if ((settings[SLICES] == 1)); then echo "${settings[NAME]}"; else echo "${settings[NAME]}-$1"; fi; }

# pod_health: pod_state, or GONE. Checked twice, so that one incomplete list does not end a run.
pod_health() {
  local state list try
  for try in 1 2; do
    state=$(pod_state)
    if [[ $state != ACTIVE ]]; then break; fi
    list=$(nodes)
    if (($(grep -c . <<<"$list") >= settings[SLICES])) &&
      ! grep -qE ' (PREEMPTED|TERMINATED|STOPPED|DELETING) ' <<<"$list"; then break; fi
    state=GONE
    if ((try == 1)); then sleep "${settings[RETRY_SECONDS]}"; fi
  done
  echo "$state"
}

cmd_create() {
  local state
  state=$(pod_state)
  [[ $state == MISSING ]] || die 1 "${settings[NAME]} exists already ($state): use it, run launch/tpu.sh delete, or choose another --name"
  create_pod
  made=''
  say "${settings[NAME]} is requested; next: launch/tpu.sh wait"
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
  say "requesting ${settings[SLICES]} x ${settings[TYPE]}, ${settings[TIER]}, in ${settings[ZONE]}"
  gc "${track[@]}" compute tpus queued-resources create "${settings[NAME]}" "${request[@]}" "${where[@]}" >&2 ||
    grep -q ALREADY_EXISTS "$tmp/error" || # created by a first try whose answer was lost
    die_of 1 "${settings[NAME]} could not be created"
  assumed=ACTIVE
}

pause() { # between two polls; ends the subshell of a script that was killed
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
        printf '%s\n' "${error:=gcloud gives no reason (perhaps --valid-until has passed, or there is no capacity)}" >"$tmp/error"
        die_of 3 "the request for ${settings[NAME]} failed in the queue"
        ;;
      SUSPENDING | SUSPENDED | DELETING | GONE)
        die 3 "${settings[NAME]} is gone ($state): launch/tpu.sh delete, then create; run does both"
        ;;
    esac
    pause
  done
  say "$(date +%T) ${settings[NAME]}: ACTIVE"
}

# left_over: what still exists of the pod, lines "queued-resource STATE" and "NODE STATE".
left_over() {
  local list
  location
  list=$(gc compute tpus queued-resources list --format='value(name.basename(),state.state)' "${where[@]}") ||
    die_of 1 "what is left of ${settings[NAME]} could not be listed; it may cost money"
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
    if [[ $left == queued-resource\ * ]]; then # --force: with its nodes
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
      die 1 "${settings[NAME]} still exists: ${left//$'\n'/, }; it costs money: run launch/tpu.sh delete again," \
        "or delete it in the console (Compute Engine, TPUs)"
    back_off "$try" "still exists: ${left//$'\n'/, }"
  done
  made=''
  say "nothing of ${settings[NAME]} is left"
}

# leave STATUS: runs at every exit. A pod on which nothing runs is deleted.
leave() {
  local status=$1
  trap '' INT TERM HUP # do not interrupt the deletion
  trap - EXIT
  if [[ -n $child ]]; then kill "$child" 2>/dev/null || true; fi
  if [[ -n $made && -z ${settings[KEEP]} && -z ${settings[DRY_RUN]} ]]; then
    say "deleting ${settings[NAME]}, on which nothing runs"
    (delete_pod) || status=1
  fi
  rm -rf "$tmp"
  exit "$status"
}
