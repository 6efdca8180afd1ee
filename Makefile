# Two commands for a newcomer: `make demo` and `make test`. Each sets up all that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: demo test lint sanitize fuzz races clean

demo: $(VENV)/.ready-demo ## train a 90 %-sparse network with and without correction, and compare
	$(BIN)/equipoise compare --arms rigl rigl+agent --dataset digits --sparsity 0.9 \
	  --epochs 30 --batch-size 64 --interval 20 --num-seeds 3 --out runs/demo

test: $(VENV)/.ready-dev ## unit, property, contract, parity, oracle, golden and architecture tests
	$(BIN)/pytest

lint: $(VENV)/.ready-dev ## lint, format and strict types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Minutes each, so not a part of every check: before a change to the kernels lands.
sanitize: $(VENV)/.ready-dev ## the tests of the kernels under sanitizers of memory and arithmetic
fuzz: ## random layers against plain loops under sanitizers: make fuzz SECONDS=300
races: ## random layers on several threads under a sanitizer of races: make races SECONDS=60
sanitize fuzz races:
	$(MAKE) -f tests/sanitizers/Makefile $@

clean: ## remove the virtual environment and everything that tools left behind
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch comes first and by itself: asked for as a dependency, pip would take its newest build.
$(VENV)/.ready-torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $$(grep -i '^torch==' constraints.txt)
	touch $@

$(VENV)/.ready-demo: $(VENV)/.ready-torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e ".[data,report]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.ready-demo
