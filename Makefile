# `make` lists the targets. Everything lands in this folder: .venv, models, data and runs are git-ignored.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
# Python keeps the bytecode of modules also where it is told not to: nothing is compiled by every process anew.
export PYTHONDONTWRITEBYTECODE :=
# One worker more than cores: tests wait for processes that they start. A worker needs some 4 GB.
WORKERS := $(shell cores=$$(nproc 2>/dev/null || echo 1); echo $$((cores < 4 ? cores + 1 : 4)))
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
INSTALLED := .venv/installed
DEVELOPED := .venv/developed
DATA := data/quickstart/text.validation.jsonl
PYTHONS := python3.12 python3
FIND_PYTHON = $(shell for name in $(PYTHONS); do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$name && break; done)
# Keys of the quick starts' configs that are to be other ones: make tune TUNE='seed=1 output_dir=runs/other'
TUNE :=
TWIST :=
# What `make test-types` runs.
TYPED := tests/altojax/device
# Seconds for which `make fuzz` feeds each reader.
FUZZ_SECONDS := 60
TWIST_MEASURE := data=data/quickstart/text.validation.jsonl max_length=64 max_samples=32 new_tokens=32

.PHONY: help tune twist check test test-types test-fast fuzz docs keys notebook venv model data reference transformers4 browser clean

help: ## List the targets.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

tune: model data ## Tune the three quick start tasks; a second call resumes where the first stopped.
	$(BIN)/altojax tune configs/quickstart.yaml $(TUNE)

twist: model data ## Make the quick start's model smaller; a second call resumes where the first stopped.
	$(BIN)/twistjax train configs/twistjax/quickstart.yaml $(TWIST)
	$(BIN)/twistjax tickets runs/twist-quickstart
	$(BIN)/twistjax export runs/twist-quickstart kappa=0.75 dtype=bfloat16 out=models/twist-quickstart overwrite=true
	$(BIN)/twistjax measure models/SmolLM2-135M-Instruct.Q4_1.gguf $(TWIST_MEASURE)
	$(BIN)/twistjax measure models/twist-quickstart $(TWIST_MEASURE)

check: $(DEVELOPED) ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check model data ## Check style and types, then run every test.
	@$(MAKE) --no-print-directory reference || { [[ "$${CI:-}" != true ]] && \
		echo "no reference environment: the tests against PyTorch, transformers and peft are skipped"; }
	@$(MAKE) --no-print-directory browser || { [[ "$${CI:-}" != true ]] && \
		echo "no browser: the tests of the live page in one are skipped"; }
	$(PYTEST)

test-types: $(DEVELOPED) ## Run the tests of the device side with annotations of arrays checked as functions are called.
	CHECK_TYPES=1 $(BIN)/python -m pytest -q $(TYPED)

test-fast: $(DEVELOPED) model data ## Run the tests of every day: all but the slow ones and those of GPU kernels, hosts and browsers.
	$(PYTEST) -m 'not (slow or gpu or hosts or browser)'

fuzz: $(DEVELOPED) ## Feed every reader with damaged files, FUZZ_SECONDS=60 each.
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -n $(WORKERS) tests/fuzz

docs: $(DEVELOPED) ## Build the site of docs/ in build/site.
	$(BIN)/python scripts/docs/build_site.py

keys: $(DEVELOPED) ## Write the pages of all keys, docs/reference/*-keys.md.
	$(BIN)/python scripts/docs/write_key_pages.py

notebook: $(DEVELOPED) ## Run docs/first-sweep.ipynb from its first cell to its last, and change nothing in it.
	$(BIN)/jupyter execute --kernel_name=python3 --timeout=900 docs/first-sweep.ipynb

venv: $(DEVELOPED) ## Make .venv with the versions of constraints.txt, and what tests and docs need.

$(INSTALLED): pyproject.toml constraints.txt
	@[[ -n "$(FIND_PYTHON)" ]] || { echo "expected Python 3.12 or newer as one of: $(PYTHONS)" >&2; exit 1; }
	@echo "installing into .venv, which takes a few minutes"
	$(FIND_PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEVELOPED): $(INSTALLED)
	$(BIN)/pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

model: $(INSTALLED) ## Fetch the quick start's base model into models/.
	$(BIN)/python scripts/setup/fetch_base_model.py

data: $(DATA) ## Make the quick start's data in data/quickstart/.

$(DATA): scripts/setup/make_stdlib_data.py $(INSTALLED)
	$(BIN)/python scripts/setup/make_stdlib_data.py

reference: ## Make .venv-reference: PyTorch, transformers, peft and TRL, which the tests compare with.
	@if [[ -f scripts/setup/make_reference_env.sh ]]; then bash scripts/setup/make_reference_env.sh; fi

transformers4: reference ## Add transformers 4.57 to it, for the test that exports load there, too.
	@bash scripts/setup/make_transformers4.sh

browser: ## Find a Chromium, which the tests of the live page drive; as root on Debian, install it.
	@bash scripts/setup/make_browser_env.sh

clean: ## Remove both environments and all caches; models, data and runs stay.
	rm -rf .venv .venv-reference .venv-transformers4 build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
