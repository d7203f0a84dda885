# `make test` on a fresh machine first makes the environment .venv and installs what pyproject.toml
# asks for; .venv/.installed remembers that. .ci/run, .github/workflows and .pre-commit-config.yaml
# call these targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

# One thread a process: two test processes with two threads each would fight for two cores.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup test slow coverage lint format type imports check docs build smoke demo gpu cost

help:
	@echo "make setup     the environment .venv with everything that development needs"
	@echo "make test      tests and doctests, without the slow ones"
	@echo "make slow      the slow tests"
	@echo "make coverage  the tests of 'make test', which must reach the floor of branch coverage"
	@echo "make check     lint, type and imports"
	@echo "make lint      ruff: rules and format"
	@echo "make format    bring the sources into ruff's format"
	@echo "make type      mypy on the library and on code that uses it"
	@echo "make imports   import-linter: which module may import which"
	@echo "make docs      the documentation, into docs/_build/html"
	@echo "make build     source distribution and wheel, checked, into dist/"
	@echo "make smoke     install the wheel of dist/ in a bare environment, run the README's example"
	@echo "make gpu       the script for GPUs, small and on the CPU"
	@echo "make cost      passes, relative times and memory against benchmarks/results/limits.json"
	@echo "make demo      attack four networks on virtual people, a page of it into runs/demo"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

setup: $(VENV)/.installed

test: setup
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

slow: setup
	$(BIN)/python -m pytest -q -m slow

coverage: setup
	$(BIN)/python -m pytest -q -n 2 -m "not slow" --cov --cov-report=term:skip-covered

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/user_code.py

imports: setup
	$(BIN)/lint-imports

check: lint type imports

docs: setup
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html

build: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist

smoke:
	rm -rf dist/bare
	$(PYTHON) -m venv dist/bare
	dist/bare/$(notdir $(BIN))/python -m pip install --quiet dist/*.whl
	cd dist/bare && $(notdir $(BIN))/python ../../.ci/readme_example.py ../../README.md

gpu: setup
	$(BIN)/python benchmarks/gpu.py --device cpu --small

cost: setup
	$(BIN)/python benchmarks/check.py

demo: setup
	env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY $(BIN)/reidguard demo --threads 2 --out runs/demo
