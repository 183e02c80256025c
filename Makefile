# `make demo` sets up and trains on generated data; `make test` sets up and runs every check.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Tests start many interpreters, each of which would compile every library again.
unexport PYTHONDONTWRITEBYTECODE

COUNT ?= 5000
DURATION ?= 600

.PHONY: help setup demo test fuzz models soak bench lint types fmt schemas lock clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with the locked versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ava_pipeline needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## train a ResNet-18 on generated data with telemetry, into outputs/ava/demo, and write its report
	$(BIN)/ava-pipeline train configs/demo.yaml --restart
	@$(BIN)/ava-pipeline report outputs/ava/demo

# A file of tests stays in one process; more processes than cores would only wait for each other.
test: $(READY) lint types  ## lint, format check, strict types, tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

fuzz: $(READY)  ## read, recover and resume COUNT runs that were damaged at random
	AVA_FUZZ_EXAMPLES=$(COUNT) $(BIN)/python -m pytest tests/read/test_fuzz.py tests/write/test_fuzz.py

models: $(READY)  ## write the tables of docs/models.md, and try all models of timm and torchvision
	$(BIN)/python -m tests.models.table
	AVA_ALL_MODELS=1 $(BIN)/python -m pytest tests/models

soak: $(READY)  ## feed runs for DURATION seconds while disks fail and processes are killed
	$(BIN)/python -m tests.soak --duration-s $(DURATION) $(if $(SEED),--seed $(SEED))

# Takes minutes, on a machine that does nothing else. The gates come last, so that a missed one leaves everything measured.
bench: $(READY)  ## measure what telemetry costs, into outputs/bench
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev,peers]'
	$(BIN)/python -m ava_pipeline.bench --peers --json outputs/bench/resnet18.json --plot outputs/bench/resnet18.png
	$(BIN)/python -m ava_pipeline.bench --peers --json outputs/bench/resnet50.json --plot outputs/bench/resnet50.png \
		--model resnet50 --steps 50
	$(BIN)/python -m pytest benchmarks --benchmark-json outputs/bench/pieces.json

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

fmt: $(READY)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(READY)  ## export the JSON Schemas of all file formats
	$(BIN)/python -m ava_pipeline.schemas schemas

lock: $(READY)  ## update the locked versions in constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --upgrade --output-file constraints.txt pyproject.toml

clean:  ## remove .venv and caches, never outputs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
