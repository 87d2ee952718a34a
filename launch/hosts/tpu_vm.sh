#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it, installs this commit on its workers, runs one process on each.
# shellcheck source=launch/hosts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
launch/hosts/tpu_vm.sh start|watch|restart|stop: trains on a Cloud TPU slice, one process a worker

Example (leave out --dry-run to rent it):
  launch/hosts/tpu_vm.sh start --name=retro-7b5 --zone=us-east5-a --topology=v5p:8x8x4 --spot --config=configs/retro.py:7b5 --workdir=gs://my-bucket/7b5 --config.data.directory=gs://my-bucket/data --dry-run

  start    asks for the slice (a queued resource), waits for it, installs the committed source on every worker, trains
  watch    shows the request's state and follows the log of worker 0
  restart  after a preemption, a maintenance or a failure; takes the flags of start. Where the slice is gone, its dead
           request must be deleted before a new one is made: only with --delete
  stop     lets the workers save and end; the slice stays, AND COSTS, until it is deleted: only with --delete
No verb touches the bucket's files.

Flags:
  --name=NAME, --zone=ZONE     of the slice and of its request
  --project=PROJECT            (default: gcloud's)
  --topology=v5p:8x8x4         chip and shape of the slice; also for the cost note
  --runtime-version=VERSION    of the workers (default: the chip's base image)
  --spot                       cheaper, and taken away at any time
  --workdir=gs://BUCKET/FOLDER of the run, mounted with gcsfuse; or a path that all workers share
  --config=FILE.py[:ARGUMENTS] and --config.SECTION.KEY=VALUE, as in retro train; arguments after a lone -- are passed on
  --price-per-chip-hour=2.00   your price, for the cost note
  --delete                     allows restart and stop to delete the request with its slice
  --dry-run                    prints the commands that would run
END
}

MOUNT=/tmp/retro-bucket # on the workers
STATE=/tmp/retro-launch # on the workers: lock, pid, train.log
POLL_SECONDS=${POLL_SECONDS:-30}

# A gcloud command on this request or its slice: where what [flags...]
cloud() { run gcloud compute tpus "$1" "$2" "${FLAG[name]}" "--zone=${FLAG[zone]}" ${FLAG[project]+"--project=${FLAG[project]}"} "${@:3}"; }

# Runs words on workers, in the source's folder there: on all|0 words...
on() {
  local worker=$1 command
  shift
  command="cd retro_jax && $(quoted "$@")"
  cloud tpu-vm ssh "--worker=$worker" "--command=$command"
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED ...; nothing where there is no request.
request_state() {
  if [[ -n $DRY_RUN ]]; then
    echo "${1:-}"
    return
  fi
  cloud queued-resources describe '--format=value(state.state)' 2>/dev/null || true
}

ask() {
  local type=${FLAG[topology]%%:*} version
  case $type in
    v4) version=tpu-ubuntu2204-base ;;
    v5e) version=v2-alpha-tpuv5-lite type=v5litepod ;;
    v5p) version=v2-alpha-tpuv5 ;;
    v6e) version=v2-alpha-tpuv6e ;;
    *) fail "--topology names a chip, v4, v5e, v5p or v6e, and a shape, such as v5p:8x8x4, but is '${FLAG[topology]}'." 2 ;;
  esac
  cloud queued-resources create "--node-id=${FLAG[name]}" "--type=$type" "--topology=${FLAG[topology]#*:}" \
    "--runtime-version=${FLAG[runtime-version]:-$version}" ${FLAG[spot]+--spot}
}

wait_until_active() {
  local state
  while state=$(request_state ACTIVE) && [[ $state != ACTIVE ]]; do
    case $state in
      SUSPEND* | FAILED) fail "the request is $state: the slice is gone. $SCRIPT restart --delete ... replaces it." ;;
    esac
    say "$(date +%T) ${FLAG[name]}: ${state:-no state yet}"
    sleep "$POLL_SECONDS"
  done
}

# The path where the workers see something of the bucket; other words are left as they are.
mounted() {
  local bucket=${FLAG[workdir]#gs://}
  printf '%s\n' "${1/gs:\/\/${bucket%%/*}\//$MOUNT/}"
}

train() {
  local verb=$1 archive bucket words word
  [[ -z $(git -C "$ROOT" status --porcelain --untracked-files=no) ]] || say "note: uncommitted changes are not sent."
  archive=$(mktemp --suffix=.tar.gz)
  run git -C "$ROOT" archive --format=tar.gz "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "${FLAG[name]}:retro_jax.tar.gz" --worker=all "--zone=${FLAG[zone]}" \
    ${FLAG[project]+"--project=${FLAG[project]}"}
  rm -f "$archive"
  cloud tpu-vm ssh --worker=all '--command=mkdir -p retro_jax && tar -xzf retro_jax.tar.gz -C retro_jax'
  if [[ ${FLAG[workdir]} == gs://* ]]; then
    bucket=${FLAG[workdir]#gs://}
    on all launch/hosts/tpu_worker.sh "${bucket%%/*}" "$MOUNT"
  else
    on all launch/hosts/tpu_worker.sh
  fi
  words=("$(mounted "--workdir=${FLAG[workdir]}")" -- --hosts=tpu)
  for word in "${TRAIN[@]}"; do words+=("$(mounted "$word")"); done
  on all launch/hosts/gpu_box.sh "$verb" "--state=$STATE" "${words[@]}"
}

start() {
  need config name zone topology workdir
  cost_note
  [[ -n $(request_state) ]] || ask
  wait_until_active
  train start
}

watch() {
  need name zone
  cloud queued-resources describe '--format=value(state.state)'
  on 0 launch/hosts/gpu_box.sh watch "--state=$STATE" --workdir=.
}

restart() {
  local state
  need config name zone topology workdir
  state=$(request_state ACTIVE)
  case $state in
    ACTIVE) train restart ;;
    SUSPEND* | FAILED)
      [[ -n ${FLAG[delete]-} ]] || fail "the request is $state: the slice is gone. The same command with --delete deletes the dead request and asks for a new slice."
      delete
      start
      ;;
    *) start ;;
  esac
}

stop() {
  need name zone
  if [[ -n ${FLAG[delete]-} ]]; then
    delete
  else
    on all launch/hosts/gpu_box.sh stop "--state=$STATE" --workdir=.
    say "the slice is still there and costs; $SCRIPT stop --delete --name=${FLAG[name]} --zone=${FLAG[zone]} deletes it."
  fi
}

delete() { cloud queued-resources delete --force --quiet; }

main "name zone project runtime-version spot workdir delete" "$@"
