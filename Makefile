# make setup   the virtual environment with everything that development needs
# make lint    ruff, import contracts, types
# make test    every test that runs on one machine
# make bench   ratios against independent peers, measured in the same run

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: setup lint types test bench format clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

lint: setup types
	$(BIN)/ruff format --check appliance tests bench
	$(BIN)/ruff check appliance tests bench
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: setup
	$(BIN)/python -m bench

format: setup
	$(BIN)/ruff format appliance tests bench
	$(BIN)/ruff check --fix appliance tests bench

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist *.egg-info
