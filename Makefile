# Frozen Attention: one command runs the course, one proves it. `make help` lists all.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PY := .venv/bin/python
NOTEBOOK ?=
TORCH_INDEX ?=
REPO ?=
VERSION ?=
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
.PHONY: help venv course lab test test-long nbval test-machines notebooks evidence results benchmark smollm2 badges site lint lock

help: ## list the commands
	@echo "make <command>:"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: ## build .venv from requirements.lock, if it is not there [TORCH_INDEX=url: look for torch there too]
	@test -n "$(PYTHON)" || { echo "The course needs Python 3.11 or newer, and found none."; \
		echo "Install one, or name it: make course PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -m publishing.environment --torch-index "$(TORCH_INDEX)"

course: venv ## run the notebooks and show the claims table [NOTEBOOK=02_freezing: only that one]
	@$(PY) -m publishing.run --notebook "$(NOTEBOOK)" $(ARGS)

lab: venv ## open the course in JupyterLab [ARGS="--no-browser"]
	@JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyterlab notebooks/00_start_here.ipynb $(ARGS)

test: venv ## the tests, and every notebook against its stored outputs [TESTS=notebooks: only those]
	@$(PYTEST) $(TESTS) $(NBVAL) $(ARGS)

test-long: venv ## the tests that take minutes, such as whole notebooks with answers in them [ARGS=--minutes=30]
	@$(PYTEST) tests -m long --timeout=3600 $(ARGS)

nbval: venv ## only the notebooks, against their stored outputs
	@$(MAKE) -s test TESTS=notebooks

test-machines: venv ## the notebooks again with one thread, then with plain CPU instructions
	@echo "One thread:"
	@OMP_NUM_THREADS=1 $(MAKE) -s nbval CELL_SECONDS=900
	@echo "No vector instructions (ATEN_CPU_CAPABILITY=default):"
	@ATEN_CPU_CAPABILITY=default $(MAKE) -s nbval CELL_SECONDS=1500

notebooks: venv ## run the notebooks in place and store their outputs [NOTEBOOK=02_freezing: only that one]
	@$(PY) -m publishing.refresh $(NOTEBOOK)

evidence: venv ## record the training runs behind the verdicts under data/evidence [ARGS=...]
	@$(PY) -m helpers.study.runner $(ARGS)

results: venv ## write the verdicts, README's tables and the pages under results/ from the recorded evidence
	@$(PY) -m publishing.readme --record
	@$(PY) -m helpers.results.pages

benchmark: venv ## time and memory of our engine beside the HF Trainer's, 125M: half an hour [ARGS=--dry-run: say how long]
	@$(PY) -m helpers.study.benchmark $(ARGS)

smollm2: venv ## fetch the real pretrained model of COURSE_PROFILE=smollm2: downloads 93 MB, keeps 542 MB
	@$(PY) -m helpers.models.smollm2

badges: venv ## set the repository's name and version everywhere: REPO=owner/name VERSION=v0.1.0, or one of them
	@$(PY) -m publishing.badges "$(REPO)" "$(VERSION)"

site: venv ## build the course as pages under build/site, from what the notebooks store
	@$(PY) -m publishing.site

lint: venv ## check the style with ruff
	@$(PY) -m ruff check .

lock: ## write requirements.lock anew from requirements.txt [ARGS="name==version": hold that package there]
	@"$(PYTHON)" -m publishing.lock $(ARGS)
