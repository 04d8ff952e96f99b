# Each target does its own set-up. `make` alone lists them; the lists are the comments after `##`.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTED := $(VENV)/.tested
BENCH_VENV := .venv-bench
BENCH_INSTALLED := $(BENCH_VENV)/.installed
PACKAGES := features models stream infra freshrank
CODE := $(PACKAGES) tests $(wildcard bench)
# Every file that a test may depend on: all but what a machine makes for itself.
SOURCES = $(shell find . -type f -not -path './.*/*' -not -path '*/__pycache__/*' -not -path '*.egg-info/*' \
	-not -path './build/*')

STRATEGIES := default,ddp-fp-frozen,ddp-fp-dense,ddp-fp-wide,ddp-fp-initial,ddp-mp,ddp,ddp-constant,cr,cr-auc,ddp+cr
STRATEGIES := $(STRATEGIES),static,finetune,last-window,retrain,kd,default+gate,prior-only,vw,river,lightgbm

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint chaos results bench clean lock

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-9s %s\n", $$1, $$2 }'

install: $(INSTALLED) ## make .venv with the locked dependencies (once, then only when they change)

demo: install ## watch freshrank learn from a real log and serve what it learned
	@$(BIN)/freshrank demo

test: lint ## lint, then every test but the slow ones (no network, no Docker, under three minutes)
	$(BIN)/pytest -m "not slow"
	@touch $(TESTED)

test-all: $(TESTED) ## everything: `make test` unless nothing changed since it passed, then the slow tests
	$(BIN)/pytest -m slow

lint: install ## formatting, style, types, import contracts, and each package's map
	$(BIN)/ruff format --check --quiet $(CODE) || { echo "run: $(BIN)/ruff format $(CODE)"; exit 1; }
	$(BIN)/ruff check --quiet $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q tests/test_map.py

chaos: install ## kill, freeze and restart real processes, and prove that every label is as if quiet (up to 12 minutes)
	@$(BIN)/python -m tests.chaos

# KUAIRAND: where the files of that log are; without it MovieLens-1M and the simulated world alone.
results: install ## compare the strategies on whole logs, three seeds each (hours; goes on where it was stopped)
	@$(BIN)/freshrank data fetch movielens-1m
	@test -s .freshrank/data/simulated/impressions.parquet || $(BIN)/freshrank data simulate
	@for log in movielens-1m simulated $(if $(KUAIRAND),kuairand); do \
		test $$log != kuairand || set -- --data $(KUAIRAND); \
		$(BIN)/freshrank backtest configs/$$log.toml "$$@" --strategies $(STRATEGIES) \
			--seeds 0,1,2 --jobs 2 --out .freshrank/results/$$log --json .freshrank/results/$$log.json || exit 1; \
	done

bench: install $(BENCH_INSTALLED) ## measure speed and memory; JSON on standard output
	@$(BIN)/python -m bench

clean: ## remove .venv, .freshrank and everything else that is not source
	@test ! -x $(BIN)/freshrank || $(BIN)/freshrank broker stop >/dev/null 2>&1 || true
	rm -rf $(VENV) $(BENCH_VENV) .freshrank build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml infra/kafka.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("freshrank needs Python 3.11 or \
	newer, but $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 install" % v[:2])'
	@echo "Installing into $(VENV): 6 GB on disk, most of it torch; needed once."
	@$(PYTHON) -m venv $(VENV)
	@awk '/^uv==/ { on = 1 } on { print } on && !/\\$$/ { exit }' requirements.lock > $(VENV)/uv.txt
	@$(BIN)/pip install --quiet --require-hashes -r $(VENV)/uv.txt
	@# uv takes a quarter of pip's time. Where only pip is configured for a package index, pip does it.
	@# Compiled now, once: eight processes import these at every start of the demo.
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --compile-bytecode --require-hashes requirements.lock \
		|| $(BIN)/pip install --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@echo "Preparing the embedded broker (45 MB of jars, and a recorded start), unless it is there."
	@$(BIN)/python -W ignore -c 'from infra.broker import prepare; prepare(print)' \
		|| echo "The broker could not be prepared now; its first start tries again."
	@touch $@

# What bench/ measures against, apart from the rest: it wants other versions of what we use.
$(BENCH_INSTALLED): requirements-bench.lock | install
	@$(PYTHON) -m venv $(BENCH_VENV)
	@VIRTUAL_ENV=$(BENCH_VENV) $(BIN)/uv pip sync --require-hashes requirements-bench.lock \
		|| $(BENCH_VENV)/bin/pip install --require-hashes -r requirements-bench.lock
	@touch $@

$(TESTED): $(SOURCES)
	@$(MAKE) test

# For those who change dependencies: pins everything with hashes, names no address.
lock: install
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra controls --generate-hashes --universal --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock
	$(BIN)/uv pip compile --group bench --generate-hashes --universal --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--quiet --output-file requirements-bench.lock
