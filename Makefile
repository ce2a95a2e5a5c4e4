# `make demo` and `make test` need Debian with Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
CHECKED := cairn edge_node aggregator agent_trainer deploy benchmarks

.PHONY: demo test bench check locked lock audit sbom wheels wheels-gpu images containers clean

demo: $(VENV)/.installed
	$(VENV)/bin/cairn demo --out demo-out

test: $(VENV)/.installed-dev check
	sh tests/prepare.sh
	$(VENV)/bin/python -m pytest -m "not gpu and not containers" -n 4 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.installed-bench
	$(VENV)/bin/python -m benchmarks

# What a reviewer would otherwise have to look for by eye.
check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy $(CHECKED)
	$(VENV)/bin/bandit -q -c pyproject.toml -x cairn/v1 -r cairn edge_node aggregator agent_trainer deploy
	$(VENV)/bin/lint-imports
	cd proto && ../$(VENV)/bin/buf lint && ../$(VENV)/bin/buf breaking --against baseline.binpb
	sh proto/check.sh

# The same installation, each file compared with a hash: what a hospital that trusts no mirror runs instead.
locked: $(VENV)/bin/python
	$(PIP) --require-hashes -r deploy/requirements.txt
	$(PIP) --no-deps -e .
	touch $(VENV)/.installed $(VENV)/.installed-dev

# Writes the hashes of all that constraints.txt names; needs a package index.
lock: $(VENV)/.installed-dev
	$(PIP) uv
	$(VENV)/bin/uv pip compile -q pyproject.toml --extra dev --extra bench --extra gpu-images --extra deploy -c constraints.txt \
	  --generate-hashes --universal --python-version 3.11 --no-header --no-annotate -o deploy/requirements.txt

# Known vulnerabilities of what is installed; needs a network, and fails where a package could not be looked up.
audit: $(VENV)/.installed-dev
	$(PIP) -e ".[audit]"
	$(VENV)/bin/pip-audit --local --strict --skip-editable --progress-spinner off

sbom: $(VENV)/.installed-dev
	$(VENV)/bin/python -m deploy.sbom > sbom.json

# The packages of the images, for the builder's Python, which must be 3.11. torch is the CPU's build where pip's own
# configuration names a place that has it; a plain index gives the one for CUDA, two gigabytes more.
wheels: deploy/wheels/.filled

deploy/wheels/.filled: $(VENV)/bin/python pyproject.toml constraints.txt deploy/fetch_wheels.sh
	sh deploy/fetch_wheels.sh $(VENV)/bin/python
	touch $@

# Those of edge-gpu: 3 GB, with torch for CUDA 13, which a plain index gives, and whose libraries CuPy takes too.
wheels-gpu: $(VENV)/bin/python
	rm -rf deploy/wheels-gpu
	$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check -c constraints.txt -w deploy/wheels-gpu \
	  ".[gpu,otel,train]" cyclonedx-python-lib packaging setuptools
	rm -f deploy/wheels-gpu/cairn_federation-*

# An engine with BuildKit; no network, no registry but for the base image. IMAGES = edge-sketch edge-gpu too, where wanted.
# BASE = python@sha256:… pins the base image by the digest that you looked up and trust; a tag may be moved.
IMAGES := edge aggregator
BASE :=
images: wheels
	for image in $(IMAGES); do DOCKER_BUILDKIT=1 docker build --quiet --file deploy/Dockerfile --target $$image \
	  --build-arg VERSION=$(VERSION) $(if $(BASE),--build-arg BASE=$(BASE)) --tag cairn-$$image:$(VERSION) . || exit 1; done

# The images, the compose file and its faults on a real engine, which is started where none runs. Root.
# Beside them the slow links, which need no engine and mostly wait; what they say comes at the end. The first test has its time and
# that of the engine's and the images' making, which without a cache is a quarter of an hour on a busy machine.
LINKS := tests/containers/test_links.py
containers: $(VENV)/.installed-dev wheels
	@said=$$(mktemp); $(VENV)/bin/python -m pytest -m containers $(LINKS) >"$$said" 2>&1 & links=$$!; \
	$(VENV)/bin/python -m pytest -m containers -o timeout=1800 --ignore=$(LINKS) tests/containers; others=$$?; \
	wait $$links; slow=$$?; cat "$$said"; rm -f "$$said"; exit $$((others + slow > 0))

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
