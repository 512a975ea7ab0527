#!/usr/bin/env bash
# Part of launch/tpu.sh: starts, watches and stops the run, and restarts it after preemptions and failures.
# shellcheck disable=SC2034,SC2154 # variables shared with launch/tpu.sh and its other parts
set -euo pipefail

cmd_train() {
  list_workers all
  start_run
}

start_run() {
  local token
  token=$(date +%s)-$$-$RANDOM
  require train "${settings[SSH_SECONDS]}" "$(on_worker start "$token" "${settings[MODULE]}" "${train_args[@]}")"
  say "the run has started; see launch/tpu.sh status, logs, stop"
}

cmd_stop() {
  list_workers all
  require stop "$((settings[STOP_SECONDS] + 120))" "$(on_worker stop "${settings[STOP_SECONDS]}")"
  say "stopped on all workers"
}

cmd_logs() {
  local slice node worker
  list_workers "${settings[WORKER]:-all}"
  if [[ -n ${settings[FOLLOW]} ]]; then
    read -r slice node worker <"$tmp/workers"
    say "following $slice.$worker, Ctrl-C ends it"
    ssh_workers "$node" "$worker" 7d "tail -n ${settings[LINES]} -F $remote_dir/run.log"
    return
  fi
  require logs "${settings[SSH_SECONDS]}" "$(on_worker logs "${settings[LINES]}")"
  if [[ -z ${settings[DRY_RUN]} ]]; then answers; fi
}

cmd_profile() {
  list_workers "${settings[WORKER]:-0.0}"
  require profile "${settings[SSH_SECONDS]}" "$(on_worker profile)"
  say "trace requested; once it is written: tensorboard --logdir=OUT_DIR (of the run)"
}

cmd_status() {
  local state status=0
  state=$(pod_health)
  echo "${settings[NAME]}: $state"
  if [[ -n ${settings[DRY_RUN]} ]]; then
    list_workers all
    ask "${settings[SSH_SECONDS]}" "$(on_worker status)"
    return
  fi
  nodes | sed 's/^/slice /; s/$/ workers/'
  case $state in
    ACTIVE) ;;
    MISSING) return 3 ;;
    GONE | SUSPENDED | SUSPENDING | FAILED | DELETING) die 3 "the pod is gone: launch/tpu.sh run resumes from the newest checkpoint" ;;
    *) return ;;
  esac
  list_workers all
  ask "${settings[SSH_SECONDS]}" "$(on_worker status)" || status=$?
  answers
  if [[ -n $silent ]]; then die 4 "no answer from $silent: try launch/tpu.sh status again; if a worker is dead, run recreates the pod"; fi
  case $(run_state) in
    stopped) die 6 "the run was asked to stop and has saved: train (or run) resumes from there" ;;
    failed | lost) die 5 "the run failed: launch/tpu.sh logs; train (or run) resumes from the newest checkpoint" ;;
  esac
}

# run_state: from the answers to "status": none, running, done, failed, stopped (by SIGTERM, after a
# checkpoint) or lost (ended without an exit status).
run_state() {
  awk '$2 == "state" {
         n++
         if ($3 != "ended") seen[$3]++
         else if ($4 == "status=0") done++
         else if ($4 == "status=143") stopped++
         else failed++
       }
       END {
         if (failed) print "failed"
         else if (seen["lost"] || (seen["none"] && (seen["none"] < n))) print "lost"
         else if (seen["none"]) print "none"
         else if (done == n) print "done"
         else if (stopped && (done + stopped == n)) print "stopped"
         else print "running"
       }' "$tmp/answers"
}

# attempt FUNCTION: runs it in a subshell with set -e; its status is in $status.
attempt() {
  (
    set -e
    "$@"
  ) & # in the background: a signal to this script would wait for a foreground process
  child=$!
  status=0
  wait "$child" || status=$?
  child=''
}

# bring_up: setup, preflight and start, unless a run is active already.
bring_up() {
  list_workers all
  require setup "${settings[SSH_SECONDS]}" "$ping" # ssh may come up later than the pod
  if [[ -z ${settings[DRY_RUN]} ]] && ask "${settings[SSH_SECONDS]}" "test -e $remote_dir/worker.sh && $(on_worker status)" 1 &&
    [[ $(run_state) == running ]]; then
    say "a run is active on ${settings[NAME]}, watching it"
    return
  fi
  install_all
  cmd_preflight
  start_run
}

# watch_run: until the run ends. Status: 0 done, 3 the pod is gone, 4 workers do not answer, 5 the run
# failed, 6 somebody stopped it.
watch_run() {
  local state unanswered=0 stopped=0 last='' now
  list_workers all
  while true; do
    state=$(pod_health)
    if [[ $state != ACTIVE ]]; then die 3 "the pod is gone ($state)"; fi
    if ask "${settings[SSH_SECONDS]}" "$(on_worker status)" 1; then
      unanswered=0
      if [[ -n ${settings[DRY_RUN]} ]]; then return; fi
      case $(run_state) in
        done) return ;;
        failed | lost | none)
          answers >&2
          die 5 "the run ended early"
          ;;
        stopped) # so does a preemption at first, until the pod is gone
          stopped=$((stopped + 1))
          if ((stopped > settings[TRIES])); then
            die 6 "the run was asked to stop and has saved: run resumes it; delete gives the pod back"
          fi
          ;;
      esac
      now=$(sed -n '/ log /{s/^\[[0-9.]*\] log //p;q}' "$tmp/answers")
      if [[ $now != "$last" ]]; then say "$(date +%T) $now"; fi
      last=$now
    else
      unanswered=$((unanswered + 1))
      say "no answer from ${silent:-$failed} ($unanswered of ${settings[TRIES]})"
      if ((unanswered >= settings[TRIES])); then die 4 "workers do not answer: $silent"; fi
    fi
    pause
  done
}

keep_logs() { # the workers' disks are deleted with the pod
  local file=${settings[NAME]}.log
  settings[LINES]=1000
  if (cmd_logs >"$file") 2>/dev/null; then say "the last lines of all logs are in $PWD/$file"; fi
}

cmd_run() {
  local status failures=0 mine='' watched
  pack_code # fails before anything is rented
  while true; do
    watched=''
    ensure_pod
    attempt wait_for_pod
    if ((status == 0)); then attempt bring_up; fi
    if ((status == 0)); then
      made='' # a run is on it now: the pod stays if this script is interrupted
      mine=yes
      watched=yes
      attempt watch_run
    fi
    if ((status == 0)); then break; fi
    if ((status == 6)); then exit 6; fi
    if ((status == 3)) && [[ -n $watched ]]; then
      failures=0 # preempted during a healthy run
      continue
    fi
    failures=$((failures + 1))
    if ((status == 5)); then keep_logs; fi
    if ! [[ $status =~ ^[345]$ ]] || ((failures > settings[MAX_RESTARTS])); then
      made=$mine
      if [[ $status =~ ^[345]$ ]]; then say "error: --max-restarts=${settings[MAX_RESTARTS]} is exhausted"; fi
      exit "$status"
    fi
    back_off 1 "failure $failures, at most ${settings[MAX_RESTARTS]} restarts"
    case $status in
      4) delete_pod ;; # a dead worker needs another pod
      5) attempt cmd_stop ;;
    esac
  done
  say "the run is done"
  if [[ -z ${settings[KEEP]} ]]; then delete_pod; fi
}

# ensure_pod: a requested pod for cmd_run; a dead one is deleted first.
ensure_pod() {
  local state
  state=$(pod_health)
  case $state in
    GONE | FAILED | SUSPENDED | SUSPENDING | DELETING)
      say "${settings[NAME]} is gone ($state), requesting it again"
      delete_pod
      # its quota is released a little later
      also_transient=RESOURCE_EXHAUSTED create_pod
      mine=yes
      ;;
    MISSING)
      create_pod
      mine=yes
      ;;
  esac
}
