# Each target works alone on a fresh clone: it makes .venv first, where there is none.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PROCESSES ?= 2
CHECKS := format lint types imports

.PHONY: help demo quick test test-cluster test-all soak check $(CHECKS:%=check-%) docs clean

help:
	@echo "make demo          draw images, train, localize, evaluate, report: into demo/"
	@echo "make quick         the unit tests that train nothing: a minute or two"
	@echo "make test          all tests but the slow ones, in two processes (PROCESSES=2): ten minutes"
	@echo "make test-cluster  an autoscaler, two hosts (as root), submitting: seven minutes"
	@echo "make test-all      all tests, the soak too: an hour; another with real images"
	@echo "make soak          a training and a bulk run, killed again and again: half an hour"
	@echo "make check         format, lint, types, import rules; each alone: $(CHECKS:%=check-%)"
	@echo "make docs          the documentation as a site: build/docs/index.html; installs Sphinx first"
	@echo "make clean         remove .venv and what the targets left"

demo: $(STAMP)
	$(BIN)/cropscore demo --out demo

quick: $(STAMP)
	$(BIN)/python -m pytest -n $(PROCESSES) -m "not slow and not trains" tests/unit

test: $(STAMP)
	$(BIN)/python -m pytest -n $(PROCESSES) -m "not slow and not cluster"

test-cluster: $(STAMP)
	$(BIN)/python -m pytest -rP -m cluster tests/cluster

test-all: $(STAMP)
	$(BIN)/python -m pytest

soak: $(STAMP)
	$(BIN)/python -m pytest -rP -m slow tests/s3/test_training_kills_s3.py tests/s3/test_kills_s3.py

check: $(CHECKS:%=check-%)

check-format: $(STAMP)
	$(BIN)/ruff format --check .

check-lint: $(STAMP)
	$(BIN)/ruff check .

check-types: $(STAMP)
	$(BIN)/mypy

check-imports: $(STAMP)
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
