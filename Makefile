# The doors of this project. `make` alone prints them; people and CI use the same ones.
# All that is needed beforehand is Python 3.11 or later with pip; the rest goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
URL ?=
JOBS ?= 6
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --constraint constraints.txt
# What fails beside five other tests is run once more, alone, and told as such: on a machine that is shared, a limit may
# pass for want of a processor. What fails twice has failed.
ALONE = { echo "== once more, one at a time: what failed above"; \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none --maxfail 5; }
# Beside each other, as each of them has one processor's work to do.
CHECKS = printf '%s\n' 'pyright --pythonpath $(BIN)/python' mypy 'ruff check' 'ruff format --check' \
	| xargs -P 2 -I{} sh -c '$(BIN)/{}'

# One process compiles the tests while types are checked; else each of the six does so.
COLLECT = $(BIN)/python -m pytest --collect-only --quiet >.venv/collected.log 2>&1

# pyright ships inside its package; without this it would look for a newer release on every run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without byte code each of the thousand processes that the tests start would compile all of busline again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check bench clean
.DEFAULT_GOAL := help

help: ## print these doors
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: .venv/installed ## four workers, one of them killed, and the count of what was lost; URL=… for another broker
	@$(BIN)/busline demo $(URL)

test: .venv/developed ## lint, types and all tests, JOBS=6 at a time: they wait more than they compute
	@status=0; $(COLLECT) & \
	$(CHECKS) || status=1; wait; \
	$(BIN)/python -m pytest -n $(JOBS) || { [ $$? -eq 1 ] && $(ALONE); } || status=1; \
	exit $$status

check: .venv/developed ## lint, format and types: ruff, mypy, pyright
	@$(CHECKS)

bench: .venv/developed ## measure it on this machine
	@$(INSTALL) --quiet --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks

clean: ## remove the virtual environment and what tools left behind
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing busline into .venv"
	@$(INSTALL) --editable . >.venv/pip.log 2>&1 || { cat .venv/pip.log; exit 1; }
	@touch $@

.venv/developed: .venv/installed
	@echo "installing the tools of development"
	@$(INSTALL) --editable '.[dev]' >.venv/pip.log 2>&1 || { cat .venv/pip.log; exit 1; }
	@touch $@

# Debian's Python comes without ensurepip: then the system's pip fills the environment, or makes it by virtualenv.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "busline needs Python 3.11: make PYTHON=/path/to/it"; exit 1; }
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 \
	|| { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $@ install --quiet pip 2>/dev/null; } \
	|| { $(PYTHON) -m pip install --quiet --target build/virtualenv virtualenv \
	     && PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --clear --quiet .venv; }
