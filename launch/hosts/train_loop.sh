#!/usr/bin/env bash
# Runs a command again as long as it ends with 75 (preempted and saved: run me again); any other code ends the loop.
#
#   train_loop.sh STATE_DIRECTORY COMMAND [ARGUMENTS...]
#
# STATE_DIRECTORY/lock is held while the loop or its command lives, STATE_DIRECTORY/pid is the loop's process. A TERM, INT
# or HUP is handed to the command as TERM, which saves and ends; then nothing is started again.
set -uo pipefail

PREEMPTED=75
state=$1
shift
mkdir -p "$state"
exec 9>>"$state/lock"
flock --nonblock 9 || {
  echo "train_loop: another loop holds $state/lock; nothing was started." >&2
  exit 1
}
echo "$$" >"$state/pid"

stopping='' child='' interrupted=''
trap 'stopping=1 interrupted=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null' TERM INT HUP

code=0
while [[ -z $stopping ]]; do
  "$@" & # inherits the lock: should this loop be killed alone, nothing else is started beside what still trains
  child=$!
  interrupted=1
  while [[ -n $interrupted ]]; do # a trapped signal ends `wait` before the command has ended
    interrupted=''
    wait "$child"
    code=$?
  done
  [[ $code == "$PREEMPTED" ]] || break
  [[ -n $stopping ]] || echo "train_loop: preempted and saved; running it again." >&2
done
echo "train_loop: ended with exit code $code$([[ -z $stopping ]] || echo ' after a stop')." >&2
exit "$code"
