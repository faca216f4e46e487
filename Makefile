# `make quickstart` and `make test` are all a fresh machine needs.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := all
.PHONY: all install quickstart lint format type test faults oldest older bench gpu docs

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

OLDEST_TESTS := $(addprefix tests/,model/test_build.py model/test_layouts.py model/test_last_layer.py model/test_varlen.py model/test_lora.py \
	model/test_pretrained.py model/test_reward_model.py recipe/test_schema.py recipe/test_explain.py data/test_prepare.py data/test_builder.py \
	engine/test_loop.py engine/test_loss_scale.py engine/test_distributed.py test_cli.py)

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable . deepspeed hypothesis pytest tensorboard
	touch $@

oldest: .venv-oldest/.installed
	.venv-oldest/bin/pytest $(OLDEST_TESTS)

.venv-older/.installed: constraints.txt
	$(PYTHON) -m venv .venv-older
	.venv-older/bin/pip install --quiet --constraint constraints.txt torch safetensors
	.venv-older/bin/pip install --quiet transformers==4.57.6
	touch $@

older: install .venv-older/.installed
	OLDER_TRANSFORMERS=$(CURDIR)/.venv-older/bin/python $(BIN)/pytest tests/model/test_consumers.py

bench: install
	$(BIN)/python -m benchmarks

# A GPU machine may have no network: nothing is installed here, and without a virtual environment the Python of the machine runs it.
gpu:
	HF_HUB_OFFLINE=1 $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --json $(or $(OUT),runs/bench)/gpu.json

.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/.docs
	$(BIN)/rmtrain schema > schema/recipe.schema.json
	$(BIN)/python docs/generate.py
	$(BIN)/python -m tests.library_models
	$(BIN)/python -m tests.messages > tests/golden/messages.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
