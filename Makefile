# make demo    one command from a fresh machine to a running demonstration; ONCE=1 ends after the loop
# make test    every test that a change must pass      make check      style, types, imports, golden files
# make test-long  the same with full counts            make bench [NAME=…]  measurements with their ratios

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8600
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-long check format bench setup setup-test lock golden clean

demo: setup
	$(BIN)/valv demo demo-node --port $(PORT) $(if $(ONCE),--once)

setup: setup/.packages $(VENV)/.runtime

setup-test: setup setup/.packages-test $(VENV)/.dev

setup/.packages: setup/packages.txt setup/debian.sh
	@sh setup/debian.sh setup/packages.txt
	@touch $@

setup/.packages-test: setup/packages-test.txt setup/debian.sh
	@sh setup/debian.sh setup/packages-test.txt
	@touch $@

$(VENV)/bin/python: | setup/.packages
	@echo "Making the Python environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/build.txt requirements/runtime.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing Valv and what it needs into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/build.txt -r requirements/runtime.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	@echo "Installing the tools of the tests into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

test: setup-test
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "not slow" tests

test-long: setup-test
	$(PYTEST) -n $(WORKERS) --dist loadfile --long tests

check: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m valv.assemble.reference --check
	$(BIN)/python -m valv.assemble.openapi --check
	$(BIN)/python -m valv.assemble.cli_reference --check

golden: setup-test
	$(BIN)/python -m valv.assemble.reference --write
	$(BIN)/python -m valv.assemble.openapi --write
	$(BIN)/python -m valv.assemble.cli_reference --write

format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-test setup/.packages-bench .venv-bench/.done
	$(BIN)/python -m bench $(NAME)

setup/.packages-bench: setup/packages-bench.txt setup/debian.sh
	@sh setup/debian.sh setup/packages-bench.txt
	@touch $@

# Peers of the benchmarks have an environment of their own: what they need is not what Valv needs.
.venv-bench/.done: requirements/bench.txt | setup/.packages-bench
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

# Pins anew, with hashes and without any address.
lock: setup-test
	for name in build runtime dev bench; do $(BIN)/uv pip compile -q --upgrade --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --python-version 3.11 requirements/$$name.in \
		$$([ $$name = dev ] && echo -c requirements/runtime.txt) -o requirements/$$name.txt; done

clean:
	rm -rf $(VENV) .venv-bench build src/*.egg-info setup/.packages setup/.packages-test setup/.packages-bench .mypy_cache .ruff_cache .pytest_cache
