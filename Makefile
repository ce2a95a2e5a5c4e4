# `make demo` and `make test` need Debian with Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CHECKED := cairn edge_node aggregator agent_trainer deploy benchmarks

.PHONY: demo test bench check clean

demo: $(VENV)/.installed
	$(VENV)/bin/cairn demo --out demo-out

test: $(VENV)/.installed-dev check
	sh tests/prepare.sh
	$(VENV)/bin/python -m pytest -m "not gpu" -n 2 --dist loadfile

bench: $(VENV)/.installed-bench
	$(VENV)/bin/python -m benchmarks

# What a reviewer would otherwise have to look for by eye.
check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy $(CHECKED)
	$(VENV)/bin/lint-imports
	cd proto && ../$(VENV)/bin/buf lint && ../$(VENV)/bin/buf breaking --against baseline.binpb
	sh proto/check.sh

$(VENV)/bin/python:
	sh deploy/virtual_environment.sh $(PYTHON) $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[train]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) -e ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) demo-out .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
