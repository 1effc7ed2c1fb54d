# Every target sets up what it needs, in .venv; the only things taken from the machine are a C compiler and Python >= 3.10.
#
#   make demo      the main job on real input: digest every file of Python's standard library with four workers
#   make test      the tests          make lint    ruff, both ways       make types   mypy --strict
#   make stress    the same promises for longer (STRESS_SECONDS=600, STRESS_KILLS=10000; CHAOS_SEED=… repeats a storm)
#   make soak      the queue under load while its processes are killed and stopped (SOAK_SECONDS=600)
#   make bench     the numbers of docs/benchmarks.md, on this machine
#   make docs      the documentation into site/
#   make clean     everything that was made here

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.10,\
	$(shell command -v $(name) >/dev/null 2>&1 && \
		$(name) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Test files are spread over so many processes; 0: none but pytest's own, for a debugger.
TEST_PROCESSES ?= logical --maxprocesses 8
STRESS_SECONDS ?= 120
STRESS_KILLS ?= 10000
SOAK_SECONDS ?= 600

C_SOURCES := $(wildcard ipc/core/*.[ch] ipc/binding/*.[ch])

.PHONY: help demo test lint types stress soak bench docs clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#   /s/^#   //p' Makefile

demo: $(VENV)/.built
	$(BIN)/python examples/digest/demo.py

# Compiled once, not by each of the 200 processes that a run of the tests starts.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.built
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.built
	$(BIN)/mypy
	@# Each example is an application in a folder of its own: several are called `app`.
	@for folder in examples/*/; do \
		(cd $$folder && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
			--cache-dir ../../.mypy_cache/$$folder .) || exit 1; done

stress: $(VENV)/.built
	STRESS_SECONDS=$(STRESS_SECONDS) STRESS_KILLS=$(STRESS_KILLS) \
		$(BIN)/python -m pytest -m stress --timeout=0 $(PYTEST_ARGS)

soak: $(VENV)/.built
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m tests.ipc.soak

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf src/*.egg-info ipc/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian and its kin ship Python without the venv module: virtualenv and uv do the same.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.10 or later is needed; name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@rm -rf $(VENV)
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	elif command -v virtualenv >/dev/null; then virtualenv --quiet --python $(PYTHON) $(VENV); \
	elif command -v uv >/dev/null; then uv venv --quiet --seed --python $(PYTHON) $(VENV); \
	else echo "no virtual environment can be made: install the venv module of $(PYTHON) (Debian: apt install python3-venv), virtualenv or uv" >&2; exit 1; fi

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "setuptools>=77"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[dev]"
	@touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(C_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.bench: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[bench]"
	@touch $@

$(VENV)/.docs: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[docs]"
	@touch $@
