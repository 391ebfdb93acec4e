# Each target does all the set-up that it needs. EXTRA=cuda installs the CUDA build of fbgemm.
PYTHON ?= python3
EXTRA ?= cpu
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRA)

.PHONY: help setup demo test check bench clean

help:
	@echo "make setup   virtual environment with everything (EXTRA=cpu or cuda, PYTHON=python3)"
	@echo "make demo    simulated marketplace, features, embeddings, four variants, five seeds, one table"
	@echo "make test    the test suite, on JOBS processes"
	@echo "make check   what CI runs: format, lint, types, layers, tests"
	@echo "make bench   speed and memory against peers; tables in docs/benchmarks.md"
	@echo "make clean   remove the virtual environment and caches; runs/ stays"

setup: $(STAMP)

# torch first: everything after it then finds its own build of torch satisfied. torchrec without its
# dependencies: its metadata asks for the CUDA build of fbgemm, which would replace the CPU build.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRA),dev]'
	$(BIN)/python -m pip install --quiet --no-deps torchrec==1.8.0
	@touch $@

demo: setup
	$(BIN)/dashclip demo

# One thread for each process: two pools of spinning OpenMP threads on the same cores are many times slower.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

bench: setup
	$(BIN)/dashclip bench

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
