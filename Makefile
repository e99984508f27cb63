# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test test-quick test-long test-trackers test-faults test-image lint \
  format golden pages docs lock bench clean

help:
	@echo "make demo        train ResNet-50 on a small real data set on this CPU; PRECISION=FP32 is"
	@echo "                 faster on CPUs without bfloat16 instructions"
	@echo "make test        the whole test suite, slow tests in a short form; prints the coverage"
	@echo "make test-quick  without the tests that take more than a few seconds"
	@echo "make test-long   the long form of other slow tests: processes started one by one, whole models"
	@echo "make test-trackers  TensorBoard, Weights & Biases and MLflow with their real packages"
	@echo "make test-faults the fault tests in full (about 25 minutes); writes docs/reliability.md"
	@echo "make test-image  build and test the container image (a Docker engine; about 15 minutes)"
	@echo "make lint        ruff, mypy, shellcheck, hadolint, actionlint"
	@echo "make docs        build the documentation site into site/"
	@echo "make golden      rewrite the golden files (review the diff)"
	@echo "make pages       rewrite the generated parts of docs/models (review the diff)"
	@echo "make lock        pin the image's packages again, in docker/requirements (review the diff)"
	@echo "make bench       speed measurements, into benchmarks/results/"
	@echo "make setup       .venv with everything; the targets above call it"

# torch and torchvision come from one pinned pair; the rest follows pyproject.toml.
$(VENV)/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: Python 3.10 or newer is needed: make PYTHON=python3.11 …" >&2; exit 2; }
	@$(PYTHON) -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < 15e9)' \
	  || { echo "error: installing needs 15 GB of free disk space here (9 GB stay in use)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs,dali]'
	touch $@

setup: $(VENV)/.complete

PRECISION ?= AMP

demo: setup
	$(BIN)/python launch.py --model resnet50 --precision $(PRECISION) --mode convergence --platform CPU

# Two test files at a time, because most slow tests spend half of their time waiting for processes.
# tests/conftest.py puts the files with slow tests first.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

# Measuring coverage adds about a minute.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=json:build/coverage.json
	@$(BIN)/python scripts/coverage_summary.py build/coverage.json

test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

# The fault tests have a target of their own, which writes their table.
test-long: setup
	OMP_NUM_THREADS=1 FAULTS=full $(BIN)/python -m pytest -m slow \
	  tests/conformance/test_graphs.py tests/conformance/test_processes.py tests/unit/cli/test_emit.py

# The trackers' packages have many dependencies, so they get an environment of their own. It uses
# the packages of .venv, torch among them.
TRACKERS := build/trackers-venv

$(TRACKERS)/.complete: $(VENV)/.complete
	$(BIN)/python -m venv --clear $(TRACKERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(TRACKERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	$(TRACKERS)/bin/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[tensorboard,wandb,mlflow]'
	touch $@

test-trackers: $(TRACKERS)/.complete
	REQUIRE_TRACKERS=1 $(TRACKERS)/bin/python -m pytest tests/unit/reporting/trackers/test_installed.py

# The table is written even if tests fail; the exit code is then 1.
test-faults: FAULTS ?= full
test-faults: setup
	@mkdir -p build
	-FAULTS=$(FAULTS) $(BIN)/python -m pytest -m faults --junitxml=build/faults.xml
	$(BIN)/python scripts/fault_table.py build/faults.xml

# Skipped with a line if there is no Docker engine; REQUIRE_DOCKER=1 makes that an error.
test-image: setup
	@PYTHON=$(BIN)/python bash scripts/docker/test_image.sh || test $$? -eq 77

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources scripts/*.sh scripts/docker/*.sh docker/*.sh \
	  scripts/slurm/*.sbatch .ci/run
	$(BIN)/hadolint Dockerfile
	@PATH="$(BIN):$$PATH"; if command -v actionlint >/dev/null; then actionlint; \
	  else echo "actionlint is not installed; .github/workflows was not checked"; fi

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: setup
	$(BIN)/python scripts/regenerate_golden.py

pages: setup
	$(BIN)/python scripts/model_pages.py

# Strict: a broken link or a page outside the navigation is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: setup
	UV=$(BIN)/uv docker/lock.sh

bench: setup
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/data_loading.py
	$(BIN)/python benchmarks/checkpoint_stall.py
	$(BIN)/python benchmarks/telemetry_cost.py
	$(BIN)/python benchmarks/openmp_wait.py

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
