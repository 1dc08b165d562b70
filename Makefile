# Everything a clone needs: python >= 3.11, make, gcc. `make help` lists the targets.

TORCH ?= 2.13.0
# Where the CPU build of torch is taken from when pip's own indexes do not have it.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# More words for the command that a target runs, as in: make test ARGS="tests/worker -x"
ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
PEERS_BIN := .venv-peers/bin
PEERS := .venv-peers/.peers

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-long test-all lint bench bench-steps bench-layers bench-peers bench-kernels bench-gpu picture pins clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with pinned dependencies (the other targets do so themselves)

$(READY): pyproject.toml requirements/constraints.txt scripts/setup.sh
	@VENV=.venv TORCH="$(TORCH)" TORCH_CPU_INDEX="$(TORCH_CPU_INDEX)" PYTHON="$(PYTHON)" sh scripts/setup.sh

demo: $(READY) ## Distil a model over HTTP, from upload to downloaded weights, in about three minutes
	@$(BIN)/python examples/demo.py $(ARGS)

up: $(READY) ## Run the service in the foreground: API, one worker, docs at /docs
	@$(BIN)/stillhouse up $(ARGS)

# One process for each core, up to four; tests of one file share what they start, and so stay in one process.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: $(READY) ## Run all tests but the longest, on servers that it starts itself
	$(PYTEST) -m "not long" $(ARGS)

test-long: $(READY) ## Run the longest tests: jobs of every kind and example, killed services, whole benchmarks
	$(PYTEST) -m long $(ARGS)

test-all: test test-long ## Run every test

lint: $(READY) ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## Measure speed and size, and print the table
	@$(BIN)/python -m bench $(ARGS)

bench-steps: $(READY) ## Measure steps of training: of optimizers, and of methods beside the plain student's
	@$(BIN)/python -m bench.optimizers $(ARGS)
	@$(BIN)/python -m bench.step $(ARGS)

bench-layers: $(READY) ## Measure a step of every kind of attention for more and more patches, and draw docs/attention.png
	@$(BIN)/python -m bench.layers --picture docs/attention.png $(ARGS)

bench-peers: $(PEERS) ## Compare losses and whole trainings with established engines, in an environment of their own
	@$(PEERS_BIN)/python -m bench.peers $(ARGS)

bench-kernels: $(PEERS) ## Measure the kernels on this processor beside what others offer
	@$(PEERS_BIN)/python -m bench.kernels $(ARGS)

bench-gpu: $(PEERS) ## The same on a CUDA device; writes bench-output/gpu.json and gpu.md
	@$(PEERS_BIN)/python -m bench.gpu $(ARGS)

$(PEERS): pyproject.toml requirements/constraints.txt scripts/setup.sh bench/peers/setup.sh bench/peers/requirements.txt
	@TORCH="$(TORCH)" TORCH_CPU_INDEX="$(TORCH_CPU_INDEX)" PYTHON="$(PYTHON)" sh bench/peers/setup.sh

picture: $(READY) ## Write the picture of imports in docs/architecture.md
	@$(BIN)/python -m scripts.imports_picture

pins: $(READY) ## Write the versions that are installed now to requirements/constraints.txt
	@sh scripts/pins.sh

clean: ## Remove .venv, caches and what the demo wrote; never data of a service
	rm -rf .venv .venv-peers build dist *.egg-info demo-output bench-output
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
