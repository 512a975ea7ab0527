#!/usr/bin/env bash
# Part of launch/tpu.sh: the run on the pod, and watching over it through preemptions.
# shellcheck disable=SC2034,SC2154 # variables shared by the parts
set -euo pipefail

cmd_train() {
  roster all
  start_run
}

start_run() {
  local token
  token=$(date +%s)-$$-$RANDOM
  demand train "${settings[SSH_SECONDS]}" "$(on_worker start "$token" "${settings[MODULE]}" "${train_args[@]}")"
  say "the run is started; launch/tpu.sh status, logs, stop"
}

cmd_stop() {
  roster all
  demand stop "$((settings[STOP_SECONDS] + 120))" "$(on_worker stop "${settings[STOP_SECONDS]}")"
  say "stopped on all workers"
}

cmd_logs() {
  local slice node worker
  roster "${settings[WORKER]:-all}"
  if [[ -n ${settings[FOLLOW]} ]]; then
    read -r slice node worker <"$tmp/roster"
    say "following $slice.$worker, Ctrl-C ends it"
    ssh_workers "$node" "$worker" 7d "tail -n ${settings[LINES]} -F $remote_dir/run.log"
    return
  fi
  demand logs "${settings[SSH_SECONDS]}" "$(on_worker logs "${settings[LINES]}")"
  if [[ -z ${settings[DRY_RUN]} ]]; then answers; fi
}

cmd_profile() {
  roster "${settings[WORKER]:-0.0}"
  demand profile "${settings[SSH_SECONDS]}" "$(on_worker profile)"
  say "asked for a trace; when it is written: tensorboard --logdir=OUT_DIR (of the run)"
}

cmd_status() {
  local state status=0
  state=$(pod_health)
  echo "${settings[NAME]}: $state"
  if [[ -n ${settings[DRY_RUN]} ]]; then
    roster all
    ask "${settings[SSH_SECONDS]}" "$(on_worker status)"
    return
  fi
  nodes | sed 's/^/slice /; s/$/ workers/'
  case $state in
    ACTIVE) ;;
    MISSING) return 3 ;;
    GONE | SUSPENDED | SUSPENDING | FAILED | DELETING) die 3 "the pod is gone: launch/tpu.sh run goes on from the newest checkpoint" ;;
    *) return ;;
  esac
  roster all
  ask "${settings[SSH_SECONDS]}" "$(on_worker status)" || status=$?
  answers
  if [[ -n $silent ]]; then die 4 "no answer from $silent: launch/tpu.sh status again; a dead worker: run recreates the pod"; fi
  case $(run_state) in
    stopped) die 6 "the run was asked to stop and has saved: train (or run) goes on from there" ;;
    failed | lost) die 5 "the run failed: launch/tpu.sh logs; train (or run) goes on from the newest checkpoint" ;;
  esac
}

# run_state: from the answers to "status": none, running, done, failed, stopped (by SIGTERM, after a
# checkpoint) or lost (ended without a status).
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

# attempt FUNCTION: in a subshell, in which set -e holds; its status in $status.
attempt() {
  (
    set -e
    "$@"
  ) & # not in the foreground: a signal to this script would wait for its end
  child=$!
  status=0
  wait "$child" || status=$?
  child=''
}

# bring_up: setup and preflight, unless a run of this commit is active there already.
bring_up() {
  roster all
  demand setup "${settings[SSH_SECONDS]}" "$hello" # ssh may come up later than the pod: it is tried again
  if [[ -z ${settings[DRY_RUN]} ]] && ask "${settings[SSH_SECONDS]}" "test -e $remote_dir/worker.sh && $(on_worker status)" 1 &&
    [[ $(run_state) == running ]]; then
    say "a run is active on ${settings[NAME]}, watching it"
    return
  fi
  install_all
  cmd_preflight
  start_run
}

# watch_run: until the run ends. Status 0 done, 3 the pod is gone, 4 workers are silent, 5 the run
# failed, 6 somebody stopped it.
watch_run() {
  local state unheard=0 stopped=0 last='' now
  roster all
  while true; do
    state=$(pod_health)
    if [[ $state != ACTIVE ]]; then die 3 "the pod is gone ($state)"; fi
    if ask "${settings[SSH_SECONDS]}" "$(on_worker status)" 1; then
      unheard=0
      if [[ -n ${settings[DRY_RUN]} ]]; then return; fi
      case $(run_state) in
        done) return ;;
        failed | lost | none)
          answers >&2
          die 5 "the run ended before its time"
          ;;
        stopped) # a preemption starts like that too, and then the pod goes
          stopped=$((stopped + 1))
          if ((stopped > settings[TRIES])); then
            die 6 "the run was asked to stop and has saved: run again to go on; delete gives the pod back"
          fi
          ;;
      esac
      now=$(sed -n '/ log /{s/^\[[0-9.]*\] log //p;q}' "$tmp/answers")
      if [[ $now != "$last" ]]; then say "$(date +%T) $now"; fi
      last=$now
    else
      unheard=$((unheard + 1))
      say "no answer from ${silent:-$failed} ($unheard of ${settings[TRIES]})"
      if ((unheard >= settings[TRIES])); then die 4 "workers do not answer: $silent"; fi
    fi
    pause
  done
}

keep_logs() { # the logs are on the workers' disks, which go with the pod
  local file=${settings[NAME]}.log
  settings[LINES]=1000
  if (cmd_logs >"$file") 2>/dev/null; then say "the end of all logs is in $PWD/$file"; fi
}

cmd_run() {
  local status troubles=0 mine='' watched
  pack_code # refuses what cannot be sent before anything is rented
  while true; do
    watched=''
    ensure_pod
    attempt wait_for_pod
    if ((status == 0)); then attempt bring_up; fi
    if ((status == 0)); then
      made='' # from now on there is a run on it: it stays when this script is interrupted
      mine=yes
      watched=yes
      attempt watch_run
    fi
    if ((status == 0)); then break; fi
    if ((status == 6)); then exit 6; fi
    if ((status == 3)) && [[ -n $watched ]]; then
      troubles=0 # preempted while all was well
      continue
    fi
    troubles=$((troubles + 1))
    if ((status == 5)); then keep_logs; fi
    if ! [[ $status =~ ^[345]$ ]] || ((troubles > settings[MAX_RESTARTS])); then
      made=$mine
      if [[ $status =~ ^[345]$ ]]; then say "error: --max-restarts=${settings[MAX_RESTARTS]} are used up"; fi
      exit "$status"
    fi
    back_off 1 "trouble $troubles of ${settings[MAX_RESTARTS]}"
    case $status in
      4) delete_pod ;; # of a dead worker only another pod helps
      5) attempt cmd_stop ;;
    esac
  done
  say "the run is done"
  if [[ -z ${settings[KEEP]} ]]; then delete_pod; fi
}

# ensure_pod: for cmd_run, a pod that is asked for; what is dead is deleted first.
ensure_pod() {
  local state
  state=$(pod_health)
  case $state in
    GONE | FAILED | SUSPENDED | SUSPENDING | DELETING)
      say "${settings[NAME]} is gone ($state), asking for it anew"
      delete_pod
      # its quota is given back a little later
      also_passing=RESOURCE_EXHAUSTED create_pod
      mine=yes
      ;;
    MISSING)
      create_pod
      mine=yes
      ;;
  esac
}
