# make demo   installs into .venv and runs the protocol on scikit-learn's digits
# make test   installs into .venv and runs the tests, on two cores (JOBS=8 on eight)
# make quick  the same without the tests marked slow: under a minute
# make docs   installs into .venv and builds the documentation: build/docs/index.html
# make linkcheck  asks every page that the documentation links to whether it is there; needs the network
# make notebook  installs Jupyter too and executes the notebook of the documentation
# make lint   formatting, types, and which module may import which; make coverage: of the tests
PYTHON ?= python3
# Threads that wait without spinning: many times faster for small networks on a machine that is shared.
export OMP_WAIT_POLICY ?= PASSIVE
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test quick coverage lint docs linkcheck notebook install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'certvae needs Python 3.11 or newer: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/certvae protocol experiments/digits.yaml --output_dir runs/demo
	$(BIN)/certvae report runs/demo

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

quick: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

coverage: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs
	@echo "The documentation: build/docs/index.html"

linkcheck: install
	$(BIN)/python -m sphinx -b linkcheck -q -d build/doctrees docs build/linkcheck

notebook: install
	$(BIN)/python -m pip install --quiet nbclient ipykernel
	$(BIN)/jupyter-execute docs/notebooks/five_minutes.ipynb

clean:
	rm -rf $(VENV) runs
