# The book's commands. Each does its own set-up, given Python 3.11 or newer, make and g++.
PYTHON ?= python3
SEEDS ?= 10 11 12
THREADS ?= 1
MODULES ?=
SEED ?= 0

VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BOOK_TESTS := benchmarks book cavity_runs colab mutate my_pinn own_pinn paper playground release site study sync
SLOW_TESTS := distributed plotting problems_cavity recording
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
WANTED := --constraint constraints.txt --editable '.[book,test]'
TEST_PACKAGE := $(BIN)/pytest -q -n logical --dist loadfile --no-loadscope-reorder tests pinnlib \
	$(addprefix --ignore tests/test_, $(BOOK_TESTS:=.py))
JUPYTER_BOOK := $(BIN)/jupyter-book build -q -W -n --keep-going

# Chapters and tests run side by side, one a core: more threads in each would only get in the way.
export OMP_NUM_THREADS := 1
# Memory that a tensor gives back is kept for the next one; asking the system anew takes a tenth of a training's time.
export MALLOC_TRIM_THRESHOLD_ := 1000000000
export MALLOC_MMAP_THRESHOLD_ := 33554432
# Modules are compiled when they are first imported, which most never are, and kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help book site test colab unit package links test-peers refresh seeds benchmarks mutants stills lint repo-url clean
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s%s\n", $$1, $$2 }' Makefile

book: $(INSTALLED) ## execute what changed in the chapters, build the website
	@echo "Executing the chapters, several minutes for all of them …"
	@$(BIN)/python tools/chapters.py site
	@echo "Building the website …"
	@$(JUPYTER_BOOK) _build/src --path-output .
	@echo "Done: open $(CURDIR)/_build/html/index.html"

site: $(INSTALLED) ## build the website from the committed outputs (a minute)
	@echo "Building the website from the committed outputs …"
	@$(BIN)/python tools/chapters.py site --committed
	@$(JUPYTER_BOOK) _build/committed/src --path-output _build/committed
	@echo "Done: open $(CURDIR)/_build/committed/_build/html/index.html"

test: $(INSTALLED) ## check everything: style, types, website, package, text, every chapter
	@$(MAKE) --no-print-directory -j2 lint site colab
	@echo "Testing the package, the text, and every chapter (executed anew, several minutes) …"
	@JUPYTER_PATH=$(CURDIR)/_build/environments/colab/share/jupyter $(BIN)/pytest -n logical --dist loadfile \
		--no-loadscope-reorder -rs --nbval --nbval-kernel-name colab chapters tests pinnlib --ignore tests/test_colab.py

colab: $(INSTALLED) ## install the package as the chapters do in Colab; make test executes them there
	@echo "Testing the set-up cell in an environment like Colab's …"
	@$(BIN)/pytest -q tests/test_colab.py

unit: $(INSTALLED) ## test the package, but for what takes longer: recorded steps, processes, figures, a flow (a minute)
	@$(TEST_PACKAGE) $(addprefix --ignore tests/test_, $(SLOW_TESTS:=.py)) -k 'not recorded'

package: $(INSTALLED) ## test the whole package (two minutes)
	@$(TEST_PACKAGE)

links: $(INSTALLED) ## look for dead links out of the site (asks each, online)
	@$(BIN)/python tools/chapters.py site --committed
	@$(BIN)/jupyter-book build -q --builder custom --custom-builder linkcheck --path-output _build/links _build/committed/src

test-peers: $(PEERS)/.installed ## run "Use it on your own PINN" with Lightning, DeepXDE and PINA
	@$(PEERS)/bin/pytest -m peers --show-capture=no --disable-warnings tests/test_own_pinn.py

refresh: $(INSTALLED) ## execute the chapters in place, renewing the committed outputs
	@$(BIN)/python tools/chapters.py refresh

seeds: $(INSTALLED) ## execute the chapters with held-out seeds (SEEDS="10 11 12 13 14 15" THREADS=1), keeping nothing
	@$(BIN)/python tools/chapters.py check --seeds $(SEEDS) --threads $(THREADS)

benchmarks: .venv-benchmarks/.installed ## measure pinnlib beside other libraries (half an hour; see benchmarks/README.md)
	@.venv-benchmarks/bin/python -m benchmarks

mutants: $(INSTALLED) ## break the package at random: do its tests notice? (MODULES="gradients step" SEED=0)
	@$(BIN)/python tools/mutate.py $(MODULES) --seed $(SEED) --report _build/mutants.md

stills: $(INSTALLED) ## renew the playground's pictures for readers without JavaScript, after make test
	@PYTHONPATH=tests $(BIN)/python tools/stills.py

lint: $(INSTALLED) ## check style and types only
	@echo "Checking style …"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/biome ci --log-level=error
	@echo "Checking types …"
	@$(BIN)/mypy

repo-url: $(INSTALLED) ## write the repository's address everywhere: URL=https://github.com/OWNER/NAME
	@$(BIN)/python tools/repo_url.py $(URL)

clean: ## remove everything that was built, the environment included
	rm -rf $(VENV) $(PEERS) .venv-benchmarks _build .mypy_cache .pytest_cache .ruff_cache .hypothesis pinnlib.egg-info

$(INSTALLED): constraints.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed, and "$(PYTHON)" is missing or older: install it, or name it with make PYTHON=/path/to/python' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo 'The venv module of "$(PYTHON)" is missing: install it (Debian, Ubuntu: sudo apt install python3-venv)' >&2; exit 1; }
	@command -v "$${CXX:-g++}" > /dev/null && \
		$(PYTHON) -c 'import os, sysconfig as c; os.stat(c.get_path("include") + "/Python.h")' 2> /dev/null || \
		{ echo 'A C++ compiler or the headers of "$(PYTHON)" are missing; chapter 9 compiles its steps: install both (Debian, Ubuntu: sudo apt install g++ python3-dev)' >&2; exit 1; }
	@echo "Installing into $(VENV), some minutes the first time …"
	@$(PYTHON) -m venv $(VENV)
	@# PyTorch comes by pip, from where this machine takes it; uv installs the rest in a quarter of pip's time.
	@$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt torch uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(WANTED) || $(BIN)/python $(PIP_INSTALL) $(WANTED)
	@rm -rf _build/.doctrees _build/committed # Sphinx would go on from what another environment left
	@touch $@

$(PEERS)/.installed: $(INSTALLED) tests/peers.txt
	@echo "Installing into $(PEERS), some minutes the first time …"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python $(PIP_INSTALL) --constraint constraints.txt \
		--requirement tests/peers.txt --editable . hypothesis nbformat pytest
	@touch $@

.venv-benchmarks/.installed: benchmarks/constraints.txt pyproject.toml
	@echo "Installing the other libraries into .venv-benchmarks, some minutes the first time …"
	@$(PYTHON) -m venv .venv-benchmarks
	@.venv-benchmarks/bin/python $(PIP_INSTALL) --constraint benchmarks/constraints.txt --editable . deepxde jax optax pina-mathlab pytorch-optimizer
	@touch $@
