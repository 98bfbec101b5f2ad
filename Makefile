# One command sets up and runs: `make demo`, `make test`. PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test lint check test-oldest benchmarks speed coverage docs clean

demo: $(VENV)/installed
	$(BIN)/leenet-fx demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

# The oldest supported torch, in a virtual environment of its own.
test-oldest:
	$(MAKE) test VENV=.venv-oldest PINS="torch==2.11.* torchvision==0.26.*"

benchmarks: $(VENV)/installed
	$(BIN)/leenet-fx demo --seeds 3 --output benchmarks/results
	$(BIN)/python benchmarks/gate_loss.py

# Beside the plain model and earlyon; about 75 minutes. Takes up where it was interrupted.
speed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/speed.py

# Every torchvision and timm model; takes up where it was interrupted.
coverage: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/coverage.py --jobs $(JOBS)

docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict -f docs/mkdocs.yml

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' $(PINS)
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist docs/site *.egg-info demo-results
