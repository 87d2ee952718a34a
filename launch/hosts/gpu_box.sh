#!/usr/bin/env bash
# Trains on this machine alone: one process that survives the terminal, and runs again when it was preempted and saved.
# shellcheck source=launch/hosts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
launch/hosts/gpu_box.sh start|watch|restart|stop: trains on all devices of this machine, in the background

Example:
  launch/hosts/gpu_box.sh start --config=configs/quickstart.py:smoke --workdir=runs/box --config.data.directory=runs/quickstart-smoke/data

  start    starts `retro train`; exit code 75 (preempted and saved) runs it again, any other ends it
  watch    shows the end of the log, and continues until the run has ended
  restart  stops it if it runs, then starts it from its last checkpoint; takes the flags of start
  stop     lets it save, and waits until it has ended; no file is deleted

Flags:
  --workdir=DIR               of the run; also DIR/launch with lock, pid and train.log
  --config=FILE.py[:ARGUMENTS] and --config.SECTION.KEY=VALUE, as in retro train; arguments after a lone -- are passed on
  --state=DIR                 for lock, pid and train.log instead of WORKDIR/launch
  --topology=h100:8           only for the cost note
  --price-per-chip-hour=2.00  your price, for the cost note
  --dry-run                   prints the commands that would run
END
}

STOP_SECONDS=900

state() {
  need workdir
  printf '%s\n' "${FLAG[state]:-${FLAG[workdir]}/launch}"
}

is_running() { [[ -e $1/lock ]] && ! flock --nonblock "$1/lock" true; }

start() {
  local state retro command
  need config
  state=$(state)
  retro=$(retro_program)
  command=("$retro" train "--workdir=${FLAG[workdir]}" "${TRAIN[@]}")
  ! is_running "$state" || fail "${FLAG[workdir]} is being trained already (process $(<"$state/pid")); watch, restart or stop it."
  cost_note
  run mkdir -p "$state"
  if [[ -n $DRY_RUN ]]; then
    printf '%s >>%q 2>&1 </dev/null &\n' "$(quoted nohup setsid "$ROOT/launch/hosts/train_loop.sh" "$state" "${command[@]}")" "$state/train.log"
    return
  fi
  rm -f "$state/pid"
  nohup setsid "$ROOT/launch/hosts/train_loop.sh" "$state" "${command[@]}" >>"$state/train.log" 2>&1 </dev/null &
  for _ in {1..100}; do [[ ! -s $state/pid ]] || break && sleep 0.1; done
  [[ -s $state/pid ]] || fail "the loop did not start; see $state/train.log"
  say "started: process $(<"$state/pid"), log $state/train.log"
  say "watch it: $SCRIPT watch --workdir=${FLAG[workdir]}"
}

watch() {
  local state
  state=$(state)
  if [[ -n $DRY_RUN ]]; then
    run tail -n 20 -F "$state/train.log"
  elif is_running "$state"; then
    tail -n 20 --pid="$(<"$state/pid")" -F "$state/train.log"
  else
    tail -n 20 "$state/train.log" || fail "nothing was started in ${FLAG[workdir]}."
    say "not running."
  fi
}

restart() {
  need config
  stop
  start
}

stop() {
  local state
  state=$(state)
  if [[ -n $DRY_RUN ]]; then
    printf "kill -TERM \"\$(cat %q)\"\n" "$state/pid"
    run flock --wait "$STOP_SECONDS" "$state/lock" true
  elif is_running "$state"; then
    say "asked process $(<"$state/pid") to save and end; waiting"
    case $(ps -o stat= -p "$(<"$state/pid")") in
      '' | Z*) kill -TERM -- "-$(<"$state/pid")" ;; # the loop was killed: to what it left running
      *) kill -TERM "$(<"$state/pid")" ;;
    esac
    flock --wait "$STOP_SECONDS" "$state/lock" true ||
      fail "it has not ended within $STOP_SECONDS s; end it without saving: kill -KILL -- -$(<"$state/pid")"
    say "ended; restart continues from the last checkpoint."
  else
    say "not running."
  fi
}

main "workdir state" "$@"
