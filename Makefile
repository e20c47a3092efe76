# Every target does its own set-up. PYTHON=python3.12 make test picks another interpreter (3.10 to 3.13).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test test-long test-pages check format test-oldest study bench reliability docs clean
.DEFAULT_GOAL := help

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## train a VAE on handwritten digits; figures and the model go to demo-output/
	$(BIN)/python examples/mlp_vae.py --dataset digits --epochs 150 --output demo-output

test: $(VENV)/.installed  ## the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not study and not long"

test-long: $(VENV)/.installed  ## the tests that take long: posteriors beside NUTS, slow distributions
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

test-pages: $(VENV)/.bench  ## run all code and commands on the pages of the documentation, 10 minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal -m page

check: $(VENV)/.installed  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-oldest:  ## the same tests on the oldest versions that pyproject.toml allows
	$(MAKE) test VENV=.venv-oldest PIP_CONSTRAINT=$(CURDIR)/tests/oldest.txt

study: $(VENV)/.installed  ## train on full MNIST, several seeds: an hour or more
	$(BIN)/python -m pytest -m study -s

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[bench]"
	touch $@

bench: $(VENV)/.bench  ## measure the speed beside others, 15 minutes: docs/speed-table.md and docs/figures/speed.png
	$(BIN)/python tests/benchmarks/run.py --output docs

reliability: $(VENV)/.installed  ## try to break it, hours: the table of docs/reliability.md
	$(BIN)/python tests/reliability.py

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

docs: $(VENV)/.docs  ## build the site in docs/_build/html; examples and tutorial are run, so it takes minutes
	$(BIN)/python -m sphinx -W --keep-going -n -j 2 -b html docs docs/_build/html
	$(BIN)/python docs/_ext/links.py docs/_build/html

clean:  ## remove the environments and everything made
	rm -rf .venv .venv-oldest demo-output build docs/_build docs/api docs/gallery *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
