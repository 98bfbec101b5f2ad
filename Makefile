# One command sets up and runs: `make demo`, `make test`. PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
# Number of the sample of models that `make coverage-sample` checks; by default another one each day.
SAMPLE ?= $(shell date -u +%j | sed 's/^0*//')

.PHONY: demo test test-slow lint check test-oldest benchmarks speed coverage coverage-sample docs clean

demo: $(VENV)/installed
	$(BIN)/leenet-fx demo --overwrite

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

# Tests that are longer than CI allows.
test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m slow

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint docs test

# The oldest supported torch, in a separate virtual environment.
test-oldest:
	$(MAKE) test VENV=.venv-oldest PINS="torch==2.11.* torchvision==0.26.*"

benchmarks: $(VENV)/installed
	$(BIN)/leenet-fx demo --seeds 3 --output benchmarks/results --overwrite
	$(BIN)/python benchmarks/gate_loss.py

# Beside the backbone and earlyon; about 75 minutes. Resumes an interrupted run.
speed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/speed.py

# Every torchvision and timm model; resumes an interrupted run.
coverage: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/coverage.py --jobs $(JOBS)

# Models of 24 families; `make test` always checks sample 0.
coverage-sample: $(VENV)/installed
	OMP_NUM_THREADS=1 LEENET_FX_SAMPLE=$(SAMPLE) $(BIN)/python -m pytest -n $(JOBS) \
		tests/test_coverage.py -k sample_is_verified

docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict -f docs/mkdocs.yml

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' $(PINS)
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist docs/site *.egg-info demo-results
