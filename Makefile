# One environment, .venv, filled in two steps: `make demo` needs only the first (no torch),
# `make test` and `make lint` add the second on top.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --retries 5
# The first Python that is new enough and can make environments; `make PYTHON=...` names another.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

.PHONY: help setup demo test lint build clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

setup: $(VENV)/dev.stamp ## everything for development, training included, into .venv

demo: $(VENV)/run.stamp ## all nodes in one process, no servers; ARGS="--source CLIP --port 8081"
	@exec $(VENV)/bin/maskcast demo $(ARGS)

# Who is not root leaves out the tests that make network namespaces; in CI all are run.
test: $(VENV)/dev.stamp ## the tests; ARGS="-k codec"
	@$(VENV)/bin/pytest $(if $(or $(CI),$(filter 0,$(shell id -u))),,-m "not root") $(ARGS)

lint: $(VENV)/dev.stamp ## style, types and the direction of imports
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

build: $(VENV)/run.stamp ## the wheel, into dist/
	@rm -rf dist
	@$(PIP) wheel --quiet --retries 5 --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## remove the environment, the wheel and every cache
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run.stamp: pyproject.toml
	@test -n "$(PYTHON)" || { echo "maskcast needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --editable '.[openvino]'
	@touch $@

# On Linux torch brings its CUDA libraries along, several GB; no extra of the package leaves them out.
$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "adding torch and the development tools to $(VENV)"
	@$(INSTALL) --editable '.[openvino,train,dev]'
	@touch $@
