# `make quickstart` and `make test` are all a fresh machine needs.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := all
.PHONY: all install quickstart lint format type test faults older bench docs

all: lint type test

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/.installed

quickstart: install
	rm -rf runs/quickstart
	$(BIN)/rmtrain train recipes/quickstart.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: install
	$(BIN)/mypy

test: install
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: install
	HYPOTHESIS_PROFILE=new $(BIN)/pytest tests/faults tests/engine tests/data/test_properties.py tests/recipe/test_load.py tests/model/test_architectures.py -m "long or not long" -n 2 --dist loadfile

.venv-older/.installed: constraints.txt
	$(PYTHON) -m venv .venv-older
	.venv-older/bin/pip install --quiet --constraint constraints.txt torch safetensors
	.venv-older/bin/pip install --quiet transformers==4.57.6
	touch $@

older: install .venv-older/.installed
	OLDER_TRANSFORMERS=$(CURDIR)/.venv-older/bin/python $(BIN)/pytest tests/model/test_consumers.py

bench: install
	$(BIN)/python -m benchmarks

docs: install
	$(BIN)/rmtrain schema > schema/recipe.schema.json
	$(BIN)/python docs/generate.py
	$(BIN)/python -m tests.messages > tests/golden/messages.txt
