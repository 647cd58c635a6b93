# make quickstart and make test need Python 3.11, 3.12 or 3.13, make and a package registry, nothing else.
# The newest of them that is here and has venv; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
  "$$name" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 \
  && { command -v "$$name"; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help python install quickstart train sweep evaluate report wandb-sync browser slurm test test-slow bench lint lock clean

help: ## list of targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml uv.lock
	@$(MAKE) --no-print-directory python
	@# uv where it is there, which takes the versions of uv.lock; it does not read pip's settings, so where it cannot reach
	@# its registry, pip is asked for the newest
	@# torch and torchvision by plain name: a CPU-only torch beside the registry's torchvision fails at import
	@if command -v uv >/dev/null && uv venv --quiet --seed --allow-existing --python "$(PYTHON)" $(VENV) \
	  && UV_PROJECT_ENVIRONMENT="$(abspath $(VENV))" uv sync --quiet --locked --inexact --extra dev; \
	then echo "installed by uv, in the versions of uv.lock"; \
	else "$(PYTHON)" -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade pip \
	  && $(BIN)/python -m pip install --quiet -e '.[dev]' && echo "installed by pip"; fi
	$(BIN)/python -c "import torch, torchvision; torchvision.ops.nms"
	touch $@

python: ## which Python `make install` takes
	@if [ -z "$(PYTHON)" ]; then echo "no Python 3.11, 3.12 or 3.13 with venv is on PATH (3.14 is too new for Hydra 1.3):" \
	  "install one (Debian: apt-get install python3.11-venv), or give PYTHON=/path/to/python" >&2; exit 1; fi
	@echo "Python: $(PYTHON)"

install: $(VENV)/.installed ## virtual environment in .venv with everything

quickstart: install ## the whole pipeline on digits, about 2 minutes after installation
	$(BIN)/python -m bsq_lightning.train experiment=quickstart

train: install ## train with ARGS="model=resnet20 reg.alpha=1e-3"
	$(BIN)/python -m bsq_lightning.train $(ARGS)

sweep: install ## a file of sweeps/: SWEEP=alpha_digits, more with ARGS="hydra.launcher.slots=2"
	$(BIN)/python -m bsq_lightning.train --config-dir sweeps --config-name $(SWEEP) $(ARGS)

evaluate: install ## test a run again: RUN=FOLDER
	$(BIN)/python -m bsq_lightning.evaluate run=$(RUN)

wandb-sync: install ## upload all offline W&B runs below a folder: RUNS=FOLDER
	@# the newest part of a resumed run holds its past as well; an older part may have been killed while it was written
	find $(RUNS) -type l -path '*/wandb/latest-run' -exec readlink -f {} + | grep /offline-run- \
	  | tr '\n' '\0' | xargs -0 -r -P 8 -n 1 $(BIN)/wandb sync

lint: install ## ruff, pyright, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

test: install ## all but the slow tests, at most 10 minutes
	@# two processes of one thread each: what two cores can do; the tests of a file share what it sets up
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

report: install ## page, Markdown, CSV and PNG of the runs below RUNS=FOLDER
	$(BIN)/python -m bsq_lightning.report runs=$(RUNS)

browser: # Chromium for the test of the report's page; without it that test is skipped and says so
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update && apt-get install -y --no-install-recommends chromium) >/dev/null 2>&1 || true; fi

slurm: # a SLURM cluster of this host for its tests; without it they are skipped and say so
	@if ! command -v sbatch >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge) >/dev/null 2>&1 || true; fi
	@tests/slurm/cluster.sh start || true

test-slow: install browser ## the slow tests; those against SLURM where `make slurm` has started it
	$(BIN)/python -m pytest -m 'slow or slurm'

bench: install ## benchmarks, nothing else should run: ROW=step_resnet20, all without; ARGS="--threads 2"
	$(BIN)/python -m benchmarks $(ROW) $(ARGS)

lock: ## uv.lock anew, after a change of dependencies
	uv lock

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache
