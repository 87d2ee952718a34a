# shellcheck shell=bash
# What the launch scripts share: flags, --dry-run, the cost note, where `retro` is. Sourced by them, never run.
#
# A script defines usage, start, watch, restart and stop, then calls: main "names of its flags" "$@"
# RETRO names another `retro` program than .venv/bin/retro or the one on the PATH.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
SCRIPT=launch/hosts/$(basename "$0")
declare -A FLAG=() # --name=value of the script itself
TRAIN=()           # what is handed on to `retro train`, but for --workdir
DRY_RUN=

main() {
  local flags=$1 verb=${2-} argument
  shift
  for argument in "$@"; do
    [[ $argument != --help && $argument != -h ]] || { usage && exit 0; }
  done
  case $verb in
    start | watch | restart | stop) shift ;;
    '') usage >&2 && exit 2 ;;
    *) fail "'$verb' is not a verb; take start, watch, restart or stop (--help shows them)." 2 ;;
  esac
  parse "$flags topology price-per-chip-hour" "$@"
  "$verb"
}

parse() {
  local known=" $1 " argument name
  shift
  while (($#)); do
    argument=$1
    shift
    case $argument in
      --) TRAIN+=("$@") && break ;;
      --dry-run) DRY_RUN=1 ;;
      --config=* | --config.* | --noconfig.*) TRAIN+=("$argument") ;;
      --config)
        (($#)) || fail "--config needs a value: --config=FILE.py[:ARGUMENTS]." 2
        TRAIN+=("--config=$1") && shift
        ;;
      --?*)
        name=${argument#--}
        name=${name%%=*}
        [[ $known == *" $name "* ]] || fail "--$name is not a flag of $SCRIPT; known:${known% } dry-run. Arguments only for retro train go after a lone --." 2
        if [[ $argument == *=* ]]; then FLAG[$name]=${argument#*=}; else FLAG[$name]=1; fi
        ;;
      *) fail "'$argument' is not a flag; flags look like --name=value." 2 ;;
    esac
  done
}

# Ends with a message where a flag is missing: need workdir config
need() {
  local name
  for name in "$@"; do
    if [[ $name == config ]]; then
      [[ ${TRAIN[*]-} == *--config=* ]] && continue
    else
      [[ -n ${FLAG[$name]-} ]] && continue
    fi
    fail "--$name=... is missing; $SCRIPT --help shows a working line." 2
  done
}

fail() {
  printf '%s: %s\n' "$SCRIPT" "$1" >&2
  exit "${2:-1}"
}

say() { printf '%s\n' "$*" >&2; }

# Its words as one line that a shell reads back to the same words.
quoted() {
  local word line=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=("$word"); else line+=("${word@Q}"); fi
  done
  printf '%s\n' "${line[*]}"
}

# Prints a command and runs it; with --dry-run it is only printed, on standard output.
run() {
  if [[ -n $DRY_RUN ]]; then quoted "$@"; else say "+ $(quoted "$@")" && "$@"; fi
}

retro_program() {
  if [[ -n ${RETRO-} ]]; then
    printf '%s\n' "$RETRO"
  elif [[ -x $ROOT/.venv/bin/retro ]]; then
    printf '%s\n' "$ROOT/.venv/bin/retro"
  else
    command -v retro || fail "retro was not found; run make setup, or put retro on the PATH."
  fi
}

python_program() {
  if [[ -x $ROOT/.venv/bin/python ]]; then printf '%s\n' "$ROOT/.venv/bin/python"; else printf 'python3\n'; fi
}

# What the run will cost by preflight's estimate, where --topology is given. Never stops a launch.
cost_note() {
  [[ -n ${FLAG[topology]-} ]] || return 0
  local retro
  retro=$(retro_program 2>/dev/null) || {
    say "cost note: none, retro is not installed here"
    return 0
  }
  python3 "$ROOT/launch/hosts/cost.py" "${FLAG[topology]}" "${FLAG[price-per-chip-hour]-}" "$retro" "${TRAIN[@]}" >&2 ||
    say "cost note: none, launch/hosts/cost.py failed"
}
