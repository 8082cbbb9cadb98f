# Two commands on a fresh machine: `make demo` and `make test`. Everything lives in .venv and demo/, both ignored by git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
DATA ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OPENCV_LOG_LEVEL := ERROR
# Threads that wait sleep, so that a busy machine is not slowed by their spinning.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check fix bench slow golden docs clean

help:  ## Show this list.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(VENV)/.ready  ## Make .venv with everything in it.

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --constraint constraints.txt --group test --group check --editable '.[model,features,webdataset,seal]'
	@touch $@

demo: setup  ## Run everything end to end into demo/; DATA=FOLDER takes real downloads instead of phantoms.
	$(BIN)/medvar-data demo $(OUT) $(if $(DATA),--data $(DATA))
	$(BIN)/medvar-model demo $(OUT)

# A worker for each processor, one thread a worker; a worker takes whole files, so that a file's set-up is made once. Python may
# keep what it compiled: each process that a test starts would compile the program anew.
test: export OMP_NUM_THREADS := 1
test: export PYTHONDONTWRITEBYTECODE :=
test: setup  ## Run the tests on all processors.
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 8 --dist loadfile

check: setup  ## Lint, format check, types, import layers.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: setup  ## Mend what the linter can mend.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup  ## Run the short form of every benchmark.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	for script in bench/*.py; do $(BIN)/python $$script --quick || exit 1; done

slow: setup  ## Run the long tests: kills, fuzz, scale, every damaged byte.
	$(BIN)/python -m pytest -m slow --timeout 3600

golden: setup  ## Rewrite the golden files; read the diff before you commit it.
	for script in tests/golden/rewrite_*.py; do $(BIN)/python $$script || exit 1; done

docs: setup  ## Rewrite the generated tables in the docs.
	$(BIN)/python docs/generate.py

clean:  ## Remove .venv, the demo's output and caches.
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
