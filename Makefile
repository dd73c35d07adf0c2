# Every target builds its own environment in .venv from the pins in constraints.txt: nothing to install by hand.
# Wheels of torch without CUDA (0.2 GB instead of 3 GB on Linux):
#   make test PIP_FLAGS="--find-links https://download.pytorch.org/whl/cpu/torch/"

PYTHON ?= python3
PIP_FLAGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
# Workers share the cores: one thread each, or they get in each other's way.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

NOTEBOOKS := $(wildcard notebooks/*.ipynb)
BENCHMARKS := $(wildcard benchmarks/bench_*.py)

.PHONY: demo test judges check lint docs bench notebooks clean

demo: $(VENV)/run
	$(BIN)/precalloc demo

test: $(VENV)/test
	$(TEST) --doctest-modules tests precalloc solvers

judges: $(VENV)/judges
	$(TEST) tests/judges
	$(BIN)/python tests/judges/table.py

check: lint test judges docs notebooks

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/docs
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build
	@echo "Open docs/_build/index.html"

bench: $(VENV)/bench
	set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python -m "benchmarks.$$(basename $$script .py)"; done

notebooks: $(if $(NOTEBOOKS),$(VENV)/notebooks)
	$(if $(NOTEBOOKS),$(TEST) --nbmake $(NOTEBOOKS),@echo "There are no notebooks yet.")

clean:
	rm -rf $(VENV) build dist docs/_build docs/reference/cli.md docs/reference/public.txt *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find precalloc solvers tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Stamps: what is installed, and since which pins.
$(VENV)/python: constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

# Editable installs are not compiled by pip; compiled, every command starts a third of a second sooner.
COMPILE = $(BIN)/python -m compileall -q precalloc solvers

$(VENV)/run: $(VENV)/python pyproject.toml
	$(INSTALL) -e .
	$(COMPILE)
	touch $@

$(VENV)/bench: $(VENV)/python pyproject.toml
	$(INSTALL) -e '.[bench]'
	$(INSTALL) --no-deps pytorchcv  # networks at full size; it asks for torchvision, which those do not need
	touch $@

# aihwkit asks for torchvision and for what it is compiled with, and needs none of it to run; torchvision's wheels from
# PyPI break transformers beside a torch without CUDA. There are wheels for Linux alone; elsewhere its tests skip.
AIHWKIT := aihwkit==1.1.0; python_version < '3.13' and sys_platform == 'linux' and platform_machine == 'x86_64'

$(VENV)/judges: $(VENV)/python pyproject.toml
	$(INSTALL) -e '.[judges]'
	$(INSTALL) --no-deps "$(AIHWKIT)"
	touch $@

$(VENV)/%: $(VENV)/python pyproject.toml
	$(INSTALL) -e '.[$*]'
	$(COMPILE)
	touch $@
