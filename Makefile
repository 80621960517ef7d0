# Each target works alone on a fresh clone: it makes .venv first, where there is none.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help demo test test-cluster test-all soak check docs clean

help:
	@echo "make demo          draw images, train, localize, evaluate, report: into demo/"
	@echo "make test          the quick tests"
	@echo "make test-cluster  an autoscaler, two hosts (as root), submitting: seven minutes"
	@echo "make test-all      all tests, the soak too: an hour; another with real images"
	@echo "make soak          a training and a bulk run, killed again and again: half an hour"
	@echo "make check         format, lint, types, import rules"
	@echo "make docs          the documentation as a site: build/docs/index.html; installs Sphinx first"
	@echo "make clean         remove .venv and what the targets left"

demo: $(STAMP)
	$(BIN)/cropscore demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not cluster"

test-cluster: $(STAMP)
	$(BIN)/python -m pytest -rP -m cluster tests/cluster

test-all: $(STAMP)
	$(BIN)/python -m pytest

soak: $(STAMP)
	$(BIN)/python -m pytest -rP -m slow tests/s3/test_training_kills_s3.py tests/s3/test_kills_s3.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/docs-installed
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet --fresh-env docs build/docs
	@echo build/docs/index.html

.venv/docs-installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cropscore needs Python 3.11 or later: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
