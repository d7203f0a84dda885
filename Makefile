# Two commands on a fresh machine: `make test` and `make demo`. Each first makes .venv and installs
# what pyproject.toml asks for; .venv/.installed remembers that.

PYTHON ?= python3
BIN := .venv/bin

# One thread a process: two test processes with two threads each would fight for two cores.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help test slow check docs demo

help:
	@echo "make test    tests and doctests, without the slow ones"
	@echo "make slow    the slow tests"
	@echo "make check   ruff, mypy, import-linter"
	@echo "make docs    the documentation, into docs/_build/html"
	@echo "make demo    attack four networks on virtual people, a page of it into runs/demo"

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

test: .venv/.installed
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

slow: .venv/.installed
	$(BIN)/python -m pytest -q -m slow

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.installed
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html

demo: .venv/.installed
	env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY $(BIN)/reidguard demo --threads 2 --out runs/demo
