# `make demo` and `make test` need nothing but Python 3.11, 3.12 or 3.13: each makes its own environment in .venv first.
# Another interpreter: make PYTHON=/path/to/python3.12 test. Installed versions: constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
INPUTS := pyproject.toml constraints.txt
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
TRITON := triton==3.9.0
KERNEL_TESTS := tests/probing/test_fused.py tests/adapters/test_fused_importance.py tests/adapters/test_kernels.py
PROBE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.DEFAULT_GOAL := help
.PHONY: help demo test lint types tests kernels docs format clean

help:
	@echo "make demo    train, merge, search, prune and score the embedded example (about three minutes)"
	@echo "make test    lint, strict types, and the whole suite with coverage"
	@echo "make kernels tests of the Triton kernels in Triton's interpreter (downloads Triton, 1 GB on disk)"
	@echo "make docs    build the documentation site into build/docs"
	@echo "make lint | types | tests | format | clean"

# Parallel make must not start two installations at once, so the second environment builds on the first.
$(RUN_READY): $(INPUTS)
	@python="$(PYTHON)"; \
	for name in $${python:-python3.11 python3.12 python3.13 python3 python}; do \
	  if "$$name" -c "$(PROBE)" >/dev/null 2>&1; then found="$$name"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 with the venv module was found; install one, or: make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	echo "installing into $(VENV) with $$("$$found" --version) (once; a few minutes)"; \
	"$(BIN)/python" -c "$(PROBE)" >/dev/null 2>&1 || "$$found" -m venv --clear $(VENV)
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(DEV_READY): $(RUN_READY)
	@$(PIP) --editable ".[dev]"
	@touch $@

demo: $(RUN_READY)
	@$(BIN)/grasp-lora demo

test: lint types
	@$(MAKE) --no-print-directory tests

lint: $(DEV_READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV_READY)
	@$(BIN)/mypy

# Two workers; each module's tests stay in one of them, so that what a module prepares is prepared once.
tests: $(DEV_READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope --cov --cov-report=term

# No part of `make test`: PyTorch for CPUs goes without Triton, which is large. It stays out of the environment, so that
# no other test runs beside it, and out of constraints.txt, since PyTorch for GPUs pins one of its own.
kernels: $(DEV_READY)
	@test -d "build/$(TRITON)/triton" || $(PIP) --no-deps --target "build/$(TRITON)" $(TRITON)
	@CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 OMP_NUM_THREADS=1 PYTHONPATH="build/$(TRITON)" \
	  $(BIN)/python -m pytest -q $(KERNEL_TESTS)

# Strict: a warning is an error. The variable silences an announcement of the theme, not warnings of the build.
docs: $(DEV_READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/docs/index.html"

format: $(DEV_READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
