# `make` lists the verbs. Everything happens in .venv, made from constraints.txt on first use.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint proto bench gpu-check k8s-check image-check clean

# The first interpreter that is 3.11 or newer; `make PYTHON=/path/to/python3.12 test` chooses another.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
PROTOS := $(wildcard proto/lodestar/v1/*.proto)

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What else stands on the command line goes on to the run: `make demo ppo.steps=8 ARGS=--fresh`.
OPTIONS = $(foreach name,$(filter-out ARGS PYTHON,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),'$(name)=$(value $(name))'))

demo: $(RUNTIME) ## A tiny model learns from preferences through five services, in five minutes
	@$(BIN)/lodestar demo $(OPTIONS) $(ARGS)

test: $(DEV) ## All tests but the slow ones, with the time per tier
	$(BIN)/python tests/tiers.py

test-slow: $(DEV) ## Soaks, many-seed studies, long fuzzing
	$(BIN)/python tests/tiers.py --slow

lint: $(DEV) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proto: $(DEV) ## Regenerate lodestar/v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

bench: $(DEV) ## Every benchmark but demo_time, which needs a second tree; each prints a table and writes JSON
	@set -e; export GOMP_SPINCOUNT=100000; for script in $(filter-out benchmarks/harness.py benchmarks/demo_time.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

gpu-check: $(DEV) ## Tests and benchmarks of kernels and engine that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests; status=$$?; [ $$status -eq 5 ] || exit $$status
	$(BIN)/python benchmarks/kernels/run.py
	$(BIN)/python benchmarks/generate_gpu.py

k8s-check: $(DEV) ## Manifests, alerts, dashboards and runs on Kubernetes, without a cluster
	$(BIN)/python tests/tiers.py k8s

image-check: ## Build the CPU image with buildah and run it on a read-only root (as root)
	tests/k8s/image_check.sh

clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "Lodestar needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make an environment; on Debian: apt install python3-venv"; exit 1; }

$(RUNTIME): constraints.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): constraints.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(RUNTIME) $@
