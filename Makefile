# pterefd: `make run` starts it, `make test` checks it; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
PROGRAMS ?= 300
SEED ?=
MINUTES ?=
THP ?=
PYTEST_ARGS ?=

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.SUFFIXES:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help run install uninstall setup setup-test test lint types pytest clients format bench bench-check torture-live recordings record-programs oracle oracle-kernels free-kernels lock docs dashboards scenarios wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# -- what people use ------------------------------------------------------------------

# exec: Ctrl-C and SIGTERM reach the daemon itself. Its own exit code stands in the last line where it is not 0.
run: setup ## install what is missing, then run the daemon on the bundled recording, mounted at ./mnt
	@mkdir mnt 2>/dev/null || :; exec $(BIN)/pterefd run -c etc/pterefd.toml

test: setup setup-test lint types pytest ## install what is missing, then lint, types and all tests

# -- set-up: each step leaves a stamp in .venv and is done again only when what it depends on changed -----

setup: $(VENV)/.stamp-warm ## system packages, .venv with pinned dependencies, compiled kernels

setup-test: $(VENV)/.stamp-dev ## what only tests need: a compiler, clients, servers (none is started)

# Looked at in every run, as packages come and go; it takes a few hundredths of a second where nothing is missing.
.PHONY: packages packages-test
packages:
	@PYTHON='$(PYTHON)' setup/packages.sh run

packages-test:
	@PYTHON='$(PYTHON)' setup/packages.sh test

$(VENV)/.stamp-venv: | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "setup: $$($(PYTHON) --version 2>&1) is too old: pterefd needs Python 3.11 or newer" \
	         "(make PYTHON=/path/to/python3 names another)" >&2; exit 3; }
	@echo "setup: making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# What builds packages comes first, so that nothing is fetched outside the locks (pip's build isolation would).
$(VENV)/.stamp-lock: requirements-build.lock requirements.lock $(VENV)/.stamp-venv
	@echo "setup: installing the pinned dependencies"
	@$(PIP) install --require-hashes --only-binary :all: -r requirements-build.lock
	@$(PIP) install --require-hashes --no-build-isolation --use-pep517 -r requirements.lock
	@touch $@

$(VENV)/.stamp-self: pyproject.toml pterefd/__init__.py $(VENV)/.stamp-lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# What is compiled is kept in the user's cache directory, so the daemon's first start is as fast as the others.
$(VENV)/.stamp-warm: $(VENV)/.stamp-self $(wildcard pterefd/engine/*.py pterefd/mm/*.py pterefd/host/*.py) | packages
	@echo "setup: compiling the kernels (once, two to three minutes)"
	@$(BIN)/python -c 'from pterefd.host.warm import warm; warm()'
	@touch $@

$(VENV)/.stamp-dev: requirements-dev.lock $(VENV)/.stamp-self | packages-test
	@echo "setup: installing the pinned tools of the tests"
	@$(PIP) install --require-hashes --no-build-isolation --use-pep517 -r requirements-dev.lock
	@touch $@

# -- installed, as distributions have it: docs/systemd.md ------------------------------

PREFIX ?= /usr/local
DESTDIR ?=
DEPENDENCIES ?= yes
# Where nobody named an interpreter, that of .venv is meant, whatever it was made with.
NAMED_PYTHON := $(if $(filter file,$(origin PYTHON)),,$(PYTHON))

install: $(VENV)/.stamp-self ## program, units, configuration, man page, completion: PREFIX=/usr/local DESTDIR= DEPENDENCIES=yes|no PYTHON=
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' DEPENDENCIES='$(DEPENDENCIES)' setup/install.sh install $(BIN)/python $(NAMED_PYTHON)

uninstall: ## take away what `make install` put there, but for the configuration: PREFIX=/usr/local DESTDIR=
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' setup/install.sh uninstall

# -- checks -------------------------------------------------------------------------

lint: $(VENV)/.stamp-dev ## ruff: style and likely mistakes
	@$(BIN)/ruff check .

types: $(VENV)/.stamp-dev ## mypy
	@$(BIN)/mypy

pytest: setup setup-test
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

clients: setup setup-test ## ps, top, psutil, node_exporter and the like on a mount, each held to numbers; ends with a table
	@$(BIN)/python -m pytest -q tests/clients

format: $(VENV)/.stamp-dev ## lay the code out with ruff
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format -q .

bench: setup setup-test ## speed of everything, as tables and in bench/results/*.json; docs/performance.md
	@PYTHON='$(PYTHON)' setup/packages.sh bench
	@$(BIN)/python -m bench.suite --json bench/results/suite.json
	@$(BIN)/python -m bench.bytedance --json bench/results/bytedance.json
	@$(BIN)/python -m bench --json bench/results/parts.json
	@$(BIN)/python -m bench.mount_latency

bench-check: setup setup-test ## the suite's ratios beside the committed ones: who lost more than 25 %
	@$(BIN)/python -m bench.check

torture-live: setup setup-test ## a program that notices everything, freed from for MINUTES=30, half of it with the worker killed
	@$(BIN)/python -m tests.freeing.long $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

oracle: setup setup-test ## random programs on the running kernel against the model: PROGRAMS=300 SEED=n LENGTH=100 THP=1 RESULTS=file
	@$(BIN)/python -m tests.kernel.oracle --programs $(PROGRAMS) $(if $(SEED),--seed $(SEED)) $(if $(THP),--thp) \
	    $(if $(LENGTH),--length $(LENGTH)) --jobs 2 $(if $(RESULTS),--results $(RESULTS))

oracle-kernels: setup setup-test ## the oracle on Debian's 6.1 and 6.12 in qemu: downloads them; about ten minutes
	@PYTHON='$(PYTHON)' setup/packages.sh guests
	@images=$$(setup/kernels.sh bookworm trixie) && $(BIN)/python -m tests.kernel.kernels \
	    $(if $(SEED),--seed $(SEED)) $(if $(RESULTS),--results $(RESULTS)) $$images

free-kernels: setup setup-test ## freeing on Debian's 6.1 and 6.12 in qemu: downloads them; about five minutes
	@PYTHON='$(PYTHON)' setup/packages.sh guests
	@images=$$(setup/kernels.sh bookworm trixie) && $(BIN)/python -m tests.freeing.kernels $$images

# -- made files ---------------------------------------------------------------------

record-programs: setup setup-test ## record real programs here and compare every checkpoint: NAMES='gcc node'
	@PYTHON='$(PYTHON)' setup/packages.sh programs
	@$(BIN)/python -m tests.recordings $(NAMES) $(if $(RESULTS),--results $(RESULTS))

recordings: setup setup-test ## record the programs of etc/traces anew (root and perf)
	@etc/traces/make.sh

COMPILE := $(VENV)/lock/bin/pip-compile -q --generate-hashes --strip-extras --allow-unsafe \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options

lock: $(VENV)/.stamp-venv ## resolve the pinned dependencies anew, with hashes
	@$(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/python -m pip -qq install pip-tools
	@export CUSTOM_COMPILE_COMMAND='make lock'; \
	    printf 'hatchling\neditables\nsetuptools\nwheel\n' | $(COMPILE) -o requirements-build.lock - \
	    && $(COMPILE) -o requirements.lock -c requirements-build.lock pyproject.toml \
	    && $(COMPILE) -o requirements-dev.lock --extra dev -c requirements.lock -c requirements-build.lock pyproject.toml

docs: $(VENV)/.stamp-dev ## write the made parts of the documentation anew
	@$(BIN)/python docs/generate.py

dashboards: setup setup-test ## build etc/grafana/dashboards anew, and draw the pictures of docs/dashboards.md
	@$(BIN)/python etc/grafana/build.py
	@$(BIN)/python docs/dashboards.py

scenarios: $(VENV)/.stamp-dev ## run the shipped scenarios and write docs/scenarios.md with its pictures anew
	@$(BIN)/python docs/scenarios.py

wheel: $(VENV)/.stamp-self ## dist/pterefd-*.whl, plugins and recordings in it
	@$(PIP) wheel --no-deps --no-build-isolation -w dist .

clean: ## remove .venv and everything that was built (not recordings)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . \( -path ./mnt -o -path ./.git \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
