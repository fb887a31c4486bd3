# make quickstart   the whole stack on this machine, and the story of the quick start
# make setup   the virtual environment with everything that development needs
# make lint    ruff, import contracts, types
# make lint-deploy   yamllint, and ansible-lint in its strictest profile, offline
# make molecule      the deployment on hosts that run a real systemd (root); SCENARIO=default for one of them
# make test    every test that runs on one machine
# make bench   ratios against independent peers, measured in the same run

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: quickstart setup lint types test bench format clean lint-deploy molecule

QUICKSTART_ARGS ?=

quickstart: $(VENV)/.installed
	@$(BIN)/appliance quickstart $(QUICKSTART_ARGS)

$(VENV)/.installed: pyproject.toml tools/make-venv
	@tools/make-venv $(PYTHON) $(VENV)
	@echo "Installing the appliance and what it needs into $(VENV) (the first time this takes a minute) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar on --editable '.[all]' \
	    | grep --line-buffered -E '^(Collecting|Downloading|Installing|ERROR)' | cut -c 1-100 || true
	@$(BIN)/python -c 'import appliance, aiohttp, sqlalchemy, epicscorelibs' || \
	    { echo "The installation failed; run it again to see why: $(BIN)/pip install -e '.[all]'" >&2; exit 1; }
	@rm -f $(VENV)/.making
	@touch $@

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml tools/make-venv
	tools/make-venv $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	rm -f $(VENV)/.making
	touch $(VENV)/.installed $@

lint: setup types lint-deploy
	$(BIN)/ruff format --check appliance tests bench roles
	$(BIN)/ruff check appliance tests bench roles
	$(BIN)/lint-imports
	$(BIN)/vulture

lint-deploy: setup
	$(BIN)/yamllint --strict .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/ansible-lint --offline -q

# Every scenario, or one; when it ends, however it ends, no host is left.
SCENARIO ?= default site upgrade restore negative
molecule: setup
	for scenario in $(SCENARIO); do \
	    PATH="$(abspath $(BIN)):$$PATH" molecule/run "$$scenario" || exit 1; \
	done
	@$(BIN)/python tests/deploy/times.py show

types: setup
	$(BIN)/mypy

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: setup
	$(BIN)/python -m bench

format: setup
	$(BIN)/ruff format appliance tests bench roles
	$(BIN)/ruff check --fix appliance tests bench roles

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist *.egg-info
