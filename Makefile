# Frozen Attention: one command runs the course, one proves it. All else: .venv/bin/course --help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PY := .venv/bin/python
NOTEBOOK ?=
TORCH_INDEX ?=
CELL_SECONDS ?= 300
ARGS ?=

# One run of pytest holds the tests and the notebooks, with WORKERS processes (pytest-xdist) of one thread each.
# A file, a notebook too, stays with one worker; the longest file begins (tests/support/pace.py).
# nbval is strict: each cell must print again what its notebook stores, within CELL_SECONDS.
WORKERS ?= 2
TESTS ?= tests notebooks
PYTEST = $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
NBVAL = --nbval --nbval-current-env --nbval-sanitize-with=tests/nbval.cfg \
	--nbval-cell-timeout=$(CELL_SECONDS) --nbval-kernel-startup-timeout=300

.DEFAULT_GOAL := help
.PHONY: help venv course lab test test-long lint

help: ## list the commands
	@echo "make <command>:"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "All else: .venv/bin/course --help"

venv: ## build .venv from requirements.lock, if it is not there [TORCH_INDEX=url: look for torch there too]
	@test -n "$(PYTHON)" || { echo "The course needs Python 3.11 or newer, and found none."; \
		echo "Install one, or name it: make course PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -m publishing.environment --torch-index "$(TORCH_INDEX)"

course: venv ## run the notebooks and show the claims table [NOTEBOOK=02_freezing: only that one]
	@$(PY) -m publishing.cli run --notebook "$(NOTEBOOK)" $(ARGS)

lab: venv ## open the course in JupyterLab, in a working copy under build/lab [ARGS="--no-browser"]
	@$(PY) -m publishing.cli lab $(ARGS)

test: venv ## the tests, and every notebook against its stored outputs [TESTS=notebooks: only those]
	@$(PYTEST) $(TESTS) $(NBVAL) $(ARGS)

test-long: venv ## the tests that take minutes, such as whole notebooks with answers in them [ARGS=--minutes=30]
	@$(PYTEST) tests -m long --timeout=3600 $(ARGS)

lint: venv ## check the style with ruff
	@$(PY) -m ruff check .
