# Two commands do everything on a machine with Python >= 3.11, make and a network for packages: `make serve`, `make test`.
# Environments are made from the locked, hash-pinned lists; a stamp in .venv says which list was installed last, so a
# second run starts at once. Nothing outside this folder is touched.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test lint types contracts tests zookeeper prove simulate bench format lock clean

# An interpreter to make .venv with; empty: the first of the candidates that is recent enough.
PYTHON ?=
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Only `make lock` needs it; it is not part of any environment.
UV_VERSION := 0.13.9

# Options for `ambry serve` and for pytest: make serve SERVE="--port 1200", make test PYTEST="-k journal -x".
SERVE ?=
PYTEST ?=
BENCH ?=
# Options for the benches of the client library, files and models: MODELS="--only files --files 2000".
MODELS ?=
PROVE ?= all --seconds 60
SIMULATE ?= --seeds 1-200 --processes 2

help:  ## this list
	@echo 'Ambry, a distributed immutable blob store. Targets:'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

serve: $(VENV)/stamp-run  ## create the locked environment if needed, and run the store on http://127.0.0.1:1174
	@echo 'ambry: starting the store; Ctrl-C stops it. Data are kept in ./ambry-data unless SERVE says otherwise.'
	@$(BYTECODE)
	@exec $(BIN)/ambry serve $(SERVE)

test: lint types contracts tests  ## create what the tests need; then lint, types, import contracts and all tests
	@echo 'ambry: lint, types, contracts and tests are fine'

lint: $(VENV)/stamp-dev  ## ruff: rules and format
	@echo 'ambry: ruff check'
	@$(BIN)/ruff check
	@echo 'ambry: ruff format --check'
	@$(BIN)/ruff format --check

types: $(VENV)/stamp-dev  ## mypy --strict on ambry, tests and bench
	@echo 'ambry: mypy --strict'
	@$(BIN)/mypy --strict

contracts: $(VENV)/stamp-dev  ## import-linter: layers, and one door per dependency
	@echo 'ambry: import contracts'
	@$(BIN)/lint-imports --no-logo

tests: $(VENV)/stamp-dev zookeeper  ## pytest
	@echo 'ambry: pytest'
	@$(BIN)/python -m pytest $(PYTEST)

zookeeper:  ## make sure that the tests have a ZooKeeper; root installs the system's package
	@.ci/zookeeper

prove: $(VENV)/stamp-dev  ## the long proofs of the storage engine: make prove PROVE="images --seconds 600"
	@$(BIN)/python -m tests.prove $(PROVE)

simulate: $(VENV)/stamp-dev  ## a cluster in virtual time, seed by seed: make simulate SIMULATE="--seeds 1-100000 --processes 8"
	@$(BIN)/python -m tests.sim $(SIMULATE)

bench: $(VENV)/stamp-dev  ## measure the main jobs beside a bare aiohttp application, then files and models beside curl
	@$(BYTECODE)
	@$(BIN)/python -m bench $(BENCH)
	@$(BIN)/python -m bench.models $(MODELS)

format: $(VENV)/stamp-dev  ## let ruff write the format and the fixes that it is sure of
	@$(BIN)/ruff check --fix-only --exit-zero
	@$(BIN)/ruff format

lock:  ## resolve pyproject.toml anew into requirements.lock and requirements-dev.lock
	@echo 'ambry: resolving with uv $(UV_VERSION)'
	@test -x build/lock/bin/uv || { $(FIND_PYTHON); "$$python" -m venv build/lock; }
	@build/lock/bin/python -m pip --disable-pip-version-check --quiet install uv==$(UV_VERSION)
	@$(COMPILE) --group build --output-file requirements.lock
	@$(COMPILE) --group build --group dev --output-file requirements-dev.lock
	@wc -l requirements.lock requirements-dev.lock

clean:  ## remove environments and caches; never data
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find ambry tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Without annotations and addresses: the lists say what is installed and with which hash, not where it came from.
COMPILE = build/lock/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url --extra client --extra server

# Sets $$python to an interpreter that is recent enough, or says what is missing.
FIND_PYTHON = python=; \
	for candidate in $(or $(PYTHON),$(CANDIDATES)); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'ambry: needs Python 3.11 or newer; tried: $(or $(PYTHON),$(CANDIDATES)). Say which: make PYTHON=/path/to/python3' >&2; \
	  exit 1; \
	fi

# An environment whose making was cut short has no stamp and no pip; it is made again from nothing.
$(VENV)/stamp-made:
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(FIND_PYTHON); \
	  echo "ambry: creating $(VENV) with $$("$$python" --version) ($$(command -v "$$python"))"; \
	  if "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	    "$$python" -m venv --clear $(VENV) || exit 1; \
	  elif "$$python" -c 'import venv, pip' 2>/dev/null; then \
	    "$$python" -m venv --clear --without-pip $(VENV) && \
	    "$$python" -m pip --quiet --python $(BIN)/python install pip || exit 1; \
	  else \
	    echo "ambry: $$python cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	fi
	@touch $@

# As pip does for packages, also where the interpreter is told to write none: a start takes half as long with it.
BYTECODE = $(BIN)/python -m compileall -q ambry

# The package itself is installed editable, without asking for anything that the list does not pin.
INSTALL = echo 'ambry: installing the packages of $(1) (hashes checked)'; \
	$(PIP) install --require-hashes -r $(1) && \
	$(PIP) install --no-deps --no-build-isolation --editable . && \
	$(BYTECODE)

$(VENV)/stamp-run: requirements.lock pyproject.toml | $(VENV)/stamp-made
	@$(call INSTALL,requirements.lock)
	@touch $@

# The list for development holds everything that the other one holds, in the same versions.
$(VENV)/stamp-dev: requirements-dev.lock pyproject.toml | $(VENV)/stamp-made
	@$(call INSTALL,requirements-dev.lock)
	@touch $(VENV)/stamp-run $@
