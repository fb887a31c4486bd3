# Everything that a developer runs. "make help" lists the targets; "make" alone runs the quick start.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# Most tests wait for daemons, so four at a time fit on two cores. Each process gets tests that stand together (worksteal): what
# a module of tests starts for all of them is started once.
PYTEST_ARGS ?= -n 4 --dist worksteal

.PHONY: quickstart help setup lint types docs test soak chaos bench format clean lint-deploy molecule

QUICKSTART_ARGS ?=

quickstart: $(VENV)/.installed  ## start the whole stack on this machine and walk through it
	@$(BIN)/appliance quickstart $(QUICKSTART_ARGS)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(VENV)/.installed: pyproject.toml tools/make-venv
	@tools/make-venv $(PYTHON) $(VENV)
	@echo "Installing the appliance and what it needs into $(VENV) (the first time this takes a minute) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar on --editable '.[all]' \
	    | grep --line-buffered -E '^(Collecting|Downloading|Installing|ERROR)' | cut -c 1-100 || true
	@$(BIN)/python -c 'import appliance, aiohttp, sqlalchemy, epicscorelibs' || \
	    { echo "The installation failed; run it again to see why: $(BIN)/pip install -e '.[all]'" >&2; exit 1; }
	@rm -f $(VENV)/.making
	@touch $@

setup: $(VENV)/.ready  ## make the virtual environment for development

$(VENV)/.ready: pyproject.toml tools/make-venv
	tools/make-venv $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# p4p has a pvagw of its own: ours comes last.
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall --editable .
	rm -f $(VENV)/.making
	touch $(VENV)/.installed $@

lint: setup types lint-deploy  ## check format, rules, types, import contracts and the deployment's files
	$(BIN)/ruff format --check appliance tests bench roles examples docs/conf.py
	$(BIN)/ruff check appliance tests bench roles examples docs/conf.py
	$(BIN)/lint-imports
	$(BIN)/vulture

lint-deploy: setup  ## check YAML files and Ansible roles (strictest profile, offline)
	$(BIN)/yamllint --strict .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/ansible-lint --offline -q

# No test host is left running, whether a scenario passes or fails.
SCENARIO ?= default site gateway upgrade restore rotate-ca negative ha standby
molecule: setup  ## deploy to test hosts that run systemd (root); SCENARIO=default runs one scenario
	for scenario in $(SCENARIO); do \
	    PATH="$(abspath $(BIN)):$$PATH" molecule/run "$$scenario" || exit 1; \
	done
	@$(BIN)/python tests/deploy/times.py show

types: setup  ## check the types of the package and of the examples (mypy --strict)
	$(BIN)/mypy

# Each warning is an error: a broken link, a name that is described nowhere, a page that no index leads to.
docs: setup  ## make the documentation as a site: build/site/index.html
	$(BIN)/sphinx-build -n -W --keep-going -q -c docs -d build/site-cache . build/site
	@echo "The site is there: build/site/index.html"

test: setup  ## run every test that needs only this machine
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What is promised of several nodes on one database: nothing that was answered is lost or done twice. The seed is printed.
SPVA_CHAOS_KILLS ?= 300
SPVA_CHAOS_SEED  ?= $(shell date +%s)
chaos: setup  ## kill nodes of the certificate service and their database 300 times during load, in random order
	SPVA_CHAOS_KILLS=$(SPVA_CHAOS_KILLS) SPVA_CHAOS_SEED=$(SPVA_CHAOS_SEED) \
	    $(BIN)/python -m pytest -q -s tests/daemons/cms/test_chaos.py

# What is promised of the gateway: 100 clients x 500 PVs, and 10 000 clients that come and go.
soak: setup chaos  ## chaos, the gateway for ten minutes and the IOC for an hour with many clients, with how their memory grows
	SPVA_SOAK_CLIENTS=100 SPVA_SOAK_PVS=500 SPVA_SOAK_SECONDS=600 SPVA_SOAK_COMINGS=10000 \
	    SPVA_SOAK_IOC_SECONDS=3600 SPVA_SOAK_IOC_COPIES=5 \
	    $(BIN)/python -m pytest -q tests/daemons/gateway/test_soak.py tests/daemons/ioc/test_soak.py

bench: setup  ## measure speed beside independent peers, in the same run
	$(BIN)/python -m bench

format: setup  ## format the code and fix what can be fixed
	$(BIN)/ruff format appliance tests bench roles examples docs/conf.py
	$(BIN)/ruff check --fix appliance tests bench roles examples docs/conf.py

clean:  ## remove the virtual environment, caches and build results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist *.egg-info
