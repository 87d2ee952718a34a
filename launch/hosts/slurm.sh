#!/usr/bin/env bash
# Trains under SLURM: one task a node, requeued when it was preempted or a task was killed.
# shellcheck source=launch/hosts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
launch/hosts/slurm.sh start|watch|restart|stop: trains on the nodes of a SLURM cluster, as one job that requeues itself

Example (leave out --dry-run to submit):
  launch/hosts/slurm.sh start --nodes=2 --gpus-per-node=8 --topology=h100:16 --config=configs/retro.py:1b5 --workdir=runs/1b5 --config.data.directory=runs/data --dry-run

  start    submits launch/hosts/slurm.sbatch; refuses while a job of that name is in the queue
  watch    shows the job in the queue and follows its log
  restart  requeues the job, or submits it again when it has left the queue; takes the flags of start
  stop     lets the job save and end, and not come back; no file is deleted

Flags:
  --workdir=DIR               of the run, on a file system that all nodes see; also DIR/launch with the logs
  --nodes=N                   how many; one task each
  --gpus-per-node=N           leave out on CPU nodes
  --time=[DAYS-]HH:MM:SS      time limit; two minutes before it the job saves and requeues itself
  --name=NAME                 of the job (default retro- and the last part of WORKDIR)
  --config=FILE.py[:ARGUMENTS] and --config.SECTION.KEY=VALUE, as in retro train; arguments after a lone -- are passed on
  --topology=h100:16          only for the cost note
  --price-per-chip-hour=2.00  your price, for the cost note
  --dry-run                   prints the commands that would run
Partition, account, quality of service and the like: sbatch's own variables, SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS.
END
}

job_name() {
  need workdir
  printf '%s\n' "${FLAG[name]:-retro-$(basename "${FLAG[workdir]}")}"
}

# Number and state of the job, "123 RUNNING", or nothing; a made-up one with --dry-run.
job() {
  if [[ -n $DRY_RUN ]]; then echo JOB RUNNING; else squeue --me --noheader --name="$(job_name)" --format='%i %T' | head -n 1; fi
}

start() {
  local retro options
  need config nodes workdir
  retro=$(retro_program)
  [[ -n $DRY_RUN || -z $(job) ]] || fail "job $(job) is in the queue already; watch, restart or stop it."
  cost_note
  options=("--job-name=$(job_name)" "--nodes=${FLAG[nodes]}" "--output=${FLAG[workdir]}/launch/slurm-%j.log")
  [[ -z ${FLAG[gpus-per-node]-} ]] || options+=("--gpus-per-node=${FLAG[gpus-per-node]}")
  [[ -z ${FLAG[time]-} ]] || options+=("--time=${FLAG[time]}")
  run mkdir -p "${FLAG[workdir]}/launch"
  run sbatch "${options[@]}" "$ROOT/launch/hosts/slurm.sbatch" \
    "$retro" train "--workdir=${FLAG[workdir]}" "${TRAIN[@]}"
}

watch() {
  local name job log
  name=$(job_name)
  run squeue --me --name="$name" --format='%.10i %.20j %.10T %.12M %.6D %R'
  if [[ -n $DRY_RUN ]]; then
    run tail -n 20 -F "${FLAG[workdir]}/launch/slurm-JOB.log"
    return
  fi
  job=$(job)
  if [[ -n $job ]]; then
    tail -n 20 -F "${FLAG[workdir]}/launch/slurm-${job%% *}.log"
  else
    log=$(find "${FLAG[workdir]}/launch" -name 'slurm-*.log' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
    [[ -n $log ]] || fail "no job '$name' in the queue and no log in ${FLAG[workdir]}/launch."
    tail -n 20 "$log"
    say "the job has left the queue; log $log"
  fi
}

restart() {
  local job
  need config nodes workdir
  job=$(job)
  case $job in
    '') start ;;
    *PENDING) say "job $job waits to start; nothing to do." ;;
    *) run scontrol requeue "${job%% *}" ;;
  esac
}

stop() {
  local job
  job=$(job)
  case $job in
    '') say "no job '$(job_name)' is in the queue." ;;
    *RUNNING)
      run scontrol update "JobId=${job%% *}" Requeue=0 # it ends with 75, and must not come back this time
      run scancel --batch --signal=TERM "${job%% *}"
      say "asked job ${job%% *} to save and end; end it without saving: scancel ${job%% *}"
      ;;
    *) run scancel "${job%% *}" ;;
  esac
}

main "workdir name nodes gpus-per-node time" "$@"
