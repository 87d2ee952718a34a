#!/usr/bin/env bash
# Prepares one worker of a TPU VM: retro_jax with its [tpu] extra in .venv, and the bucket mounted.
# launch/hosts/tpu_vm.sh runs it on every worker, at every start; existing installations stay.
#
#   tpu_worker.sh [BUCKET MOUNT]
set -euo pipefail

PYTHON_VERSION=3.12 # the workers' own Python may be older than retro_jax needs

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$HOME/.local/bin:$PATH
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
[[ -x .venv/bin/python ]] || uv venv --quiet --python "$PYTHON_VERSION" .venv
uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
uv pip install --quiet --python .venv/bin/python --editable '.[tpu]'

if (($# == 2)) && ! mountpoint --quiet "$2"; then
  command -v gcsfuse >/dev/null || {
    echo "tpu_worker: $(hostname) has no gcsfuse; install it on the workers (Google's guide 'Install Cloud Storage FUSE')," \
      "or give a --workdir that all workers share." >&2
    exit 1
  }
  mkdir -p "$2"
  gcsfuse --implicit-dirs "$1" "$2"
fi
