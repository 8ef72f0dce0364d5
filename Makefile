# make run     set up what is missing, then show the main job: a real program in a sandbox, from creation to the end
# make test    set up what is missing, then run every test
# make         list the rest

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run serve test bench soak check lint clean
MAKEFLAGS += --no-print-directory
# Hundreds of daemons start in the tests: let the first one keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
SETUP := packaging/setup/setup

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing: Debian packages, .venv, sandbox-init, the images; seconds when nothing is
	@$(SETUP) packages test-packages venv init image code-image

run: ## set up, then show a sandbox's life on this repository (SHELL_IN=1: open a shell in it too)
	@$(SETUP) packages venv init image
	@packaging/setup/demo

serve: ## set up, then run a daemon until Ctrl-C (ARGS="--listen tcp:127.0.0.1:8000" for more)
	@$(SETUP) packages venv init image
	@exec $(BIN)/sandboxd serve $(ARGS)

# What the linters have to say is no reason not to run the tests, which say more.
test: setup ## set up, then lint and run every test; what fails is run once more, alone (ARGS="tests/http -k upload": some)
	@linted=0; $(if $(ARGS),,$(MAKE) lint || linted=$$?;) \
	$(BIN)/python -m pytest -p tests.support.flaky --rerun-alone --numprocesses=auto $(ARGS); exit $$linted

bench: setup ## set up, then measure against the peers that are installed (ARGS for options)
	@exec $(BIN)/python -m tests.bench $(ARGS)

soak: setup ## set up, then an hour of many clients and a daemon killed again and again (ARGS="--minutes 10" for less)
	@exec $(BIN)/python -m tests.soak $(ARGS)

check: lint ## linters, types, and the tests of the code's structure
	$(BIN)/python -m pytest -q tests/test_*.py

lint:
	@$(SETUP) venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove what was built here, .venv included; images stay (sandboxctl image rm)
	@! test -e rootfs/init/Makefile || $(MAKE) -C rootfs/init clean
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
