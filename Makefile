# `make demo` and `make test` need nothing but Python ≥ 3.11: they make .venv, install everything into it (engines included) and run.
#   make demo    a whole stack, four real requests, what became of their money
#   make test    lint, types, the pure tests, then every other suite in JOBS processes; below ten minutes on two cores.
#                ARGS="-k holds" for a part, in one process
#   make lint    ruff and mypy alone
#   make proto   generate extproc/edge/wire from proto/
#   make bench   every bound of speed, as tables, JSON, README's table and plot: 25 minutes.  QUICK=1: tables and JSON, below three
#   make chaos   everything that breaks something on purpose, then kills at random moments under load, 50 a round; closes with a line of JSON
#                (ROUNDS=, SEED=)
#   make test-long   what takes longer than a lease, with the real ones: 150 s to a first token, an upload of 150 s; PostgreSQL away for ten minutes
#   make vllm    the end-to-end tests against a real vLLM on the CPU, its token counters against the bill; installs it (3 GB, outside), or says why not
#   make fuzz    a million mutated connections (EXAMPLES=, SEED=), 200,000 hostile bodies (BODIES=), 100,000 random requests over all endpoints,
#                methods and policies and as many bills (REQUESTS=), then every property test with many more examples: 15 minutes

SHELL := /bin/bash
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# Processes that share the suites. Tests wait for half of their time: three are faster on two cores, and two leave room for who else is there.
# Each has engines of its own, a GB.
JOBS ?= 2
EXAMPLES ?= 1000000
BODIES ?= 200000
REQUESTS ?= 100000
ROUNDS ?= 20
SEED ?= $(shell date +%s)

.PHONY: demo test test-long lint proto bench chaos vllm fuzz venv clean

demo: $(STAMP)
	$(BIN)/python -m extproc.cli demo

test: lint
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest tests/pure
	$(BIN)/python -m pytest --ignore tests/pure --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
else
	$(BIN)/python -m pytest $(ARGS)
endif

test-long: $(STAMP)
	$(BIN)/python -m pytest -s tests/chaos/long_patience.py $(ARGS)
	EXTPROC_CATCH_UP_ALONE=1 EXTPROC_POSTGRES_AWAY_S=600 EXTPROC_A_SECOND=200 $(BIN)/python -m pytest -s --timeout 1200 tests/chaos/test_postgres.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. proto/extproc/edge/wire/ext_proc.proto

bench: $(STAMP)
	QUICK=$(QUICK) $(BIN)/python -m tests.bench $(if $(QUICK),,--readme) $(ARGS)

chaos: $(STAMP)
	EXTPROC_ROUNDS=3 $(BIN)/python -m pytest -m "" tests/chaos
	$(BIN)/python -m pytest -m long tests/e2e tests/integration
	$(BIN)/python tests/chaos/storm.py $(ROUNDS) $(SEED)

vllm: $(STAMP)
	$(BIN)/python tests/vllm/run.py $(ARGS)

fuzz: $(STAMP)
	$(BIN)/python tests/contract/transport/lean_fuzz.py $(EXAMPLES) $(SEED)
	PYTHONPATH=tests $(BIN)/python -m fuzz.hostile $(BODIES) $(SEED)
	PYTHONPATH=tests $(BIN)/python -m fuzz.holds $(REQUESTS) $(SEED)
	$(BIN)/python tests/pure/money/random_bills.py $(REQUESTS) $(SEED)
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest --timeout 1800 tests/pure tests/integration/tokens tests/integration/exchange \
		tests/contract/transport/test_lean_machine.py $(ARGS)

venv: $(STAMP)

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found: install one, or say which: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments: install its package for them (Debian: python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local,check,dev]'
	@touch $@
