# Everything this repo does for a newcomer, one target each. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(if $(shell command -v uv 2>/dev/null),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install)
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint bench lab clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/ready ## only make .venv, with everything in it

demo: setup ## set up, run the main street on the built-in shapes, end with a page to open
	$(BIN)/python -m lib.shapes data/demo/meshes --count 168 --seed 0
	$(BIN)/python -m lib.batch params/demo.yaml || [ $$? -eq 3 ]

test: setup lint ## set up, lint, test (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup ## what takes minutes: kill loops, later training and the browser (under 40)
	$(BIN)/python -m pytest -m slow

lint: setup ## style of code and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup ## measure: every tests/bench_*.py, one after the other
	@for bench in tests/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

lab: setup ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)  # root, as in containers, must say so

clean: ## remove .venv, and nothing you made
	rm -rf $(VENV)

# On Linux without an NVIDIA GPU, PyPI's torch would bring gigabytes of CUDA libraries. A CPU build is taken first if
# the settings of uv or pip know one, then from PyTorch's own index; if neither has it, PyPI's it is.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "No virtual environment could be made. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  cpu="torch==$(TORCH)+cpu"; echo "no NVIDIA GPU here: looking for $$cpu"; \
	  $(INSTALL) -q --no-deps "$$cpu" 2>/dev/null || \
	  $(BIN)/python -m pip install -q --no-deps "$$cpu" 2>/dev/null || \
	  $(BIN)/python -m pip install -q --no-deps --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu "$$cpu" 2>/dev/null || \
	  echo "no CPU build at hand: PyPI's torch comes with CUDA libraries, several gigabytes"; fi
	$(INSTALL) -q -c constraints.txt -e ".[dev]"
	@touch $@
