# make demo: install into .venv, run the main job on the shipped fixtures.   make test: install, run every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types contracts unit peers clean

demo: $(STAMP)
	@$(BIN)/onnxaudit demo

test: lint types contracts unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/pytest -n 2 --dist worksteal

# Every real server that the HTTP dialects are tested with: installs them under .venv-peers (6 GB), runs their tests.
peers: $(STAMP)
	$(BIN)/python -m tests.peers
	$(BIN)/pytest -m 'peers or servers'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "onnxaudit needs Python 3.11 or newer; this is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once, a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' || \
	  { echo "Installation failed. If pip found no torch 2.13.0+cpu: your package index lacks PyTorch's CPU builds; add the index that has them with PIP_EXTRA_INDEX_URL."; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
