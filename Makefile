# make install [EXTRA=gpu] [TORCH_INDEX=<address>] [PYTHON=python3.12]

VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
# What is installed already, else cpu.
EXTRA ?= $(or $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*))),cpu)
STAMP := $(VENV)/.installed-$(EXTRA)
OTHER = $(filter-out $(STAMP),$(wildcard $(VENV)/.installed-*))
STUBS := $(patsubst %/pyproject.toml,./%,$(wildcard stubs/*/pyproject.toml))
PIP_ARGS = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(if $(filter cpu,$(EXTRA)),$(STUBS),./stubs/llama-cpp-python)

define PIP_HINT
pip could not install (its reason stands above). If it found no torch 2.13.0+cpu: PyTorch keeps its CPU wheels in an \
index of their own. Read its address on pytorch.org (Get Started, CPU), then: make install TORCH_INDEX=<address>
endef

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-slow bench lint docs clean

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

install: $(STAMP)  ## create .venv (EXTRA=gpu for CUDA, TORCH_INDEX=<address> for PyTorch's CPU wheels)

$(STAMP): pyproject.toml $(wildcard stubs/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make install PYTHON=<a newer one>"; exit 1; }
	@$(if $(OTHER),rm -rf $(VENV))
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install $(PIP_ARGS) -e ".[$(EXTRA),dev]" || { echo '$(PIP_HINT)'; exit 1; }
	@touch $(STAMP)

demo: install  ## the main job: about eight minutes on two cores, result in runs/demo
	@$(PY) launch.py train configs/pixel_debate.yaml name=demo

test: install  ## the tests, the fast ones first; all but the slow ones
	@$(PY) -m pytest -m "not engine" -n 2
	@$(PY) -m pytest -m "engine and not slow" -n 2 --dist loadscope

test-fast: install  ## the tests that start no engine
	@$(PY) -m pytest -m "not engine" -n auto

test-slow: install  ## those that take minutes each: every ZeRO stage and number of ranks, exact resume after kill -9
	@$(PY) -m pytest -m slow -n 2 --dist loadscope

bench: install  ## measure speeds into benchmarks/results.json and docs/benchmarks.md (NAMES="driver learner", QUICK=1; hours: NAMES=ablation)
	@$(PY) -m benchmarks $(NAMES) $(if $(QUICK),--quick)

lint: install  ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m mypy

docs: install  ## the documentation as a site, in build/site; needs no network
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo build/site/index.html

clean:  ## remove caches, builds and .venv; keep runs
	@rm -rf $(VENV) build *.egg-info stubs/*/build stubs/*/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
