#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, as a JobSet that restarts itself.
# shellcheck source=launch/hosts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
launch/hosts/gke.sh start|watch|restart|stop: trains on one TPU slice of a GKE cluster, as a JobSet that restarts itself

Example (leave out --dry-run to submit):
  launch/hosts/gke.sh start --name=retro-7b5 --image=IMAGE --topology=v5p:8x8x4 --config=configs/retro.py:7b5 --workdir=gs://my-bucket/7b5 --config.data.directory=gs://my-bucket/data --dry-run

  start    shows the cost note and applies the manifest (launch/hosts/jobset.yaml filled in by launch/hosts/gke.py)
  watch    shows the JobSet and its pods and follows the log of host 0
  restart  ends all pods, which save, and starts them again; with --delete deletes the JobSet and makes a new one, which
           one that has failed for good needs. Preemptions need neither: the JobSet restarts by itself
  stop     suspends the JobSet: its pods save and end, the nodes are free; with --delete deletes it
No verb touches the bucket's files.

Flags:
  --name=NAME                  of the JobSet
  --image=IMAGE                with retro_jax and its [tpu] extra installed
  --topology=v5p:8x8x4         chip and shape of the slice; also for the cost note
  --workdir=gs://BUCKET/FOLDER of the run; arguments that name gs://BUCKET/... become paths of the mounted bucket
  --namespace=NAME             (default 'default')
  --service-account=NAME       that may write to the bucket (default 'default')
  --max-restarts=N             after failures that are no preemption (default 3)
  --config=FILE.py[:ARGUMENTS] and --config.SECTION.KEY=VALUE, as in retro train; arguments after a lone -- are passed on
  --price-per-chip-hour=2.00   your price, for the cost note
  --delete                     allows restart and stop to delete the JobSet
  --dry-run                    prints the commands that would run
END
}

kube() { run kubectl "--namespace=${FLAG[namespace]:-default}" "$@"; }

selector() { printf 'jobset.sigs.k8s.io/jobset-name=%s' "${FLAG[name]}"; }

manifest() {
  local flag options=()
  need config name image topology workdir
  for flag in name image topology workdir namespace service-account max-restarts; do
    [[ -z ${FLAG[$flag]-} ]] || options+=("--$flag=${FLAG[$flag]}")
  done
  "$(python_program)" "$ROOT/launch/hosts/gke.py" "${options[@]}" -- "${TRAIN[@]}"
}

start() {
  local manifest
  manifest=$(manifest)
  cost_note
  if [[ -n $DRY_RUN ]]; then
    printf "%s <<'JOBSET'\n%s\nJOBSET\n" "$(kube apply --filename=-)" "$manifest"
  else
    kube apply --filename=- <<<"$manifest"
  fi
}

watch() {
  need name
  kube get jobset "${FLAG[name]}"
  kube get pods --selector="$(selector)" --output=wide
  kube logs --follow --tail=20 --selector="$(selector),batch.kubernetes.io/job-completion-index=0"
}

restart() {
  need name
  if [[ -n ${FLAG[delete]-} ]]; then
    manifest >/dev/null # a mistake in the flags shows before anything is deleted
    kube delete jobset "${FLAG[name]}" --ignore-not-found
    start
  else
    suspend true
    kube wait pods --selector="$(selector)" --for=delete --timeout=600s || say "continuing: new pods wait for the old ones"
    suspend false
  fi
}

stop() {
  need name
  if [[ -n ${FLAG[delete]-} ]]; then kube delete jobset "${FLAG[name]}"; else suspend true; fi
}

suspend() { kube patch jobset "${FLAG[name]}" --type=merge --patch="{\"spec\":{\"suspend\":$1}}"; }

main "name image workdir namespace service-account max-restarts delete" "$@"
