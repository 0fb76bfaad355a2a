# Two commands for a reader: `make figures` and `make test`. Both set the environment up first, once.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help figures test test-slow test-all coverage lint format lab notebooks readme bench bench-compare gpu site fresh-clone clean

PYTHON ?= python3
PROFILE ?= digits
RECORDED ?=

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
STARTED := $(VENV)/.installing

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo "  Options: PROFILE=digits|cpu|paper  RECORDED=1 (redraw from recorded results)  PYTHON=python3.12"

figures: $(STAMP) ## Run the notebooks and draw every figure into figures/PROFILE
	@$(RUN) -m zspag reproduce $(if $(filter 1,$(RECORDED)),--recorded,--profile $(PROFILE))

test: lint ## Lint, types, the tests and doctests that take seconds, and every notebook once in the smoke profile
	@$(RUN) -m pytest -n 2 --dist loadfile -m 'not slow'
	@ZSPAG_PROFILE=smoke ZSPAG_DATA="$(CURDIR)/runs/smoke/data" \
	  $(RUN) -m pytest notebooks -n 2 --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=300
	@$(RUN) -m zspag claims --profile smoke --fresh

test-slow: $(STAMP) ## The tests marked slow: the paper profile's trial, a fake GPU's notebooks, interrupts, whole grids
	@$(RUN) -m pytest -n 2 --dist load -m slow

test-all: test test-slow ## Both, as continuous integration does

# Apart from `make test`, which it would make a third slower on Python 3.11. What tests start as a process is not counted.
coverage: $(STAMP) ## The quick tests again, then how much of the package they ran, and the ten files they ran least of
	@$(RUN) -m pytest -n 2 --dist loadfile -m 'not slow' --cov --cov-report=
	@$(RUN) -m coverage report | awk 'NR <= 12 || /^TOTAL/'

lint: $(STAMP) ## Check format, style and types
	@$(RUN) -m ruff format --check --quiet .
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m mypy

format: $(STAMP) ## Format the code and repair what can be repaired
	@$(RUN) -m ruff check --quiet --fix .
	@$(RUN) -m ruff format .

lab: $(STAMP) ## Open the notebooks in JupyterLab
	@$(RUN) -m jupyterlab notebooks

notebooks: $(STAMP) ## Run the notebooks and write them back with their outputs
	@$(RUN) -m zspag reproduce --profile digits --write-back

readme: $(STAMP) ## Write the README's tables from the recorded results
	@$(RUN) -m zspag.report.readme

# Peers pin old versions of what we use: they are put apart, without their dependencies, and found here only.
PEERS := runs/peers

bench: $(STAMP) ## Time every stage against peers and the machine (TINY=1 to see that it runs, RECORD=1 to keep it)
	@cmp -s benchmarks/peers.txt $(PEERS)/peers.txt || { $(RUN) -m pip install --disable-pip-version-check --no-input --quiet \
	  --no-deps --upgrade --target $(PEERS) -r benchmarks/peers.txt && cp benchmarks/peers.txt $(PEERS)/; } || \
	  echo "The packages of benchmarks/peers.txt cannot be fetched: their columns stay empty" >&2
	@PYTHONPATH=$(PEERS) $(RUN) -m benchmarks $(if $(filter 1,$(TINY)),--tiny) $(if $(filter 1,$(RECORD)),--record)

OLD ?= $(firstword $(filter %.json,$(MAKECMDGOALS)))
bench-compare: $(STAMP) ## Print the last run stage by stage over an older file: make bench-compare OLD.json
	@test -n "$(OLD)" || { echo "Name the older file: make bench-compare results/bench/cpu.json" >&2; exit 1; }
	@$(RUN) -m benchmarks --compare "$(OLD)"

ifneq ($(filter bench-compare,$(MAKECMDGOALS)),)
$(filter %.json,$(MAKECMDGOALS)): ;@:
endif

gpu: $(STAMP) ## What one CUDA card does, at most 12 minutes, into runs/gpu (TINY=1 to see that it runs, without one)
	@$(RUN) -m benchmarks.gpu $(if $(filter 1,$(TINY)),--tiny)

# Sphinx lives apart: the committed notebooks are shown and not run, so that the site needs nothing of the package.
SITE := runs/site/venv

site: ## Build the site into runs/site/html
	@test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	@$(SITE)/bin/python -m pip install --disable-pip-version-check --no-input --quiet -r docs/requirements.txt
	@$(SITE)/bin/python docs/build_site.py && echo "Open runs/site/html/README.html"

fresh-clone: $(STAMP) ## Time the README's commands in a fresh clone of what is committed
	@$(RUN) tests/fresh_clone.py

clean: ## Remove the environment and all caches; runs, data and results stay
	@rm -rf $(VENV) build dist zspag.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find zspag tests notebooks -name __pycache__ -prune -exec rm -rf {} +

# The stamp is there only after a complete installation. STARTED without it means that an installation did not finish,
# perhaps between the files of a package, which pip would not notice: such an environment is made anew.
# pip's output is cut down to the downloads that take time.
$(STAMP): pyproject.toml constraints.txt Makefile
	@command -v "$(PYTHON)" > /dev/null || \
	  { echo "$(PYTHON) was not found: install Python 3.11, 3.12 or 3.13, or name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("zspag needs Python 3.11, 3.12 or \
	3.13, and $(PYTHON) is %d.%d: name another, as in make PYTHON=python3.12" % v[:2])'
	@if test -e $(STARTED); then echo "The last installation did not finish; starting it anew."; rm -rf $(VENV); fi
	@echo "Installing into $(VENV) (once; a few minutes, mostly the download of torch) ..."
	@mkdir -p $(VENV) && touch $(STARTED) && rm -f $(STAMP)
	@"$(PYTHON)" -m venv $(VENV)
	@set -o pipefail; $(RUN) -m pip install --disable-pip-version-check --no-input -c constraints.txt \
	  -e '.[notebooks,cluster,dev]' \
	  | awk '/Downloading .*( MB| GB)/ {sub(/^ */, "  "); print; fflush()} \
	         /^Installing collected/ {print "  Unpacking ..."; fflush()}'
	@mv $(STARTED) $(STAMP)
	@echo "Installed."
