# Set-up and checks. `make` alone says what there is.

VENV := .venv
BIN := $(VENV)/bin

# The pinned torch may have wheels for some Python versions only, so the oldest that embedmill takes comes first.
# PYTHON=/path/to/python chooses another.
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))

.PHONY: help demo test test-all lint format bench chaos clean

help:
	@echo "make demo      install, and run the main job on the bundled dataset (about 2 minutes, once installed)"
	@echo "make test      install, and run the tests but the slowest ones (6 to 9 minutes on two cores, once installed)"
	@echo "make test-all  every test, as for each change that is taken (9 to 14 minutes)"
	@echo "make lint      ruff and mypy"
	@echo "make format    have ruff mend what it can"
	@echo "make bench     compare with sentence-transformers; writes docs/benchmarks/encode.json"
	@echo "make chaos     hurt the job in every way it must survive (about 25 minutes); writes docs/benchmarks/chaos.json"
	@echo "make clean     remove what these left, but not $(VENV), engines and output"

demo: $(VENV)/.demo
	@$(BIN)/python -m examples.demo

# The tests start some hundred Pythons: without bytecode each would compile embedmill again. Four processes, because
# many tests wait for others: on two cores three leave a third of the time unused.
TESTS := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 4 --dist worksteal

test: $(VENV)/.dev
	@$(TESTS) -m 'not slow'

test-all: $(VENV)/.dev
	@$(TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.demo
	@$(BIN)/python -m bench.encode

chaos: $(VENV)/.dev
	@$(BIN)/python -m bench.chaos --json docs/benchmarks/chaos.json

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A command of this name may be a pyenv shim that runs nothing, or a Python without venv: each is tried.
$(BIN)/python:
	@found=; for python in $(PYTHONS); do \
	    if $$python -c '$(USABLE)' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "Error: none of $(PYTHONS) is a Python >= 3.11 with venv; install one, or: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

INSTALL = echo "Installing embedmill[$(1)] into $(VENV); the first time takes some minutes" \
    && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[$(1)]'

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@$(call INSTALL,demo)
	@touch $@

# dev holds demo
$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@$(call INSTALL,dev)
	@touch $(VENV)/.demo $@
