PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help venv weights demo test census lint clean

help:
	@echo "make demo   set everything up, read 8,000 tokens in an eighth of the cache (real weights)"
	@echo "make test   set everything up, run the tests"
	@echo "make census compile and compare every causal family of transformers, write docs/models.md (half an hour)"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove the virtual environment and caches"

venv: $(INSTALLED)

# torch first and pinned, so that no other package pulls a build of its own choice.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[examples,dev]'
	touch $@

weights: venv
	$(BIN)/python examples/fetch_weights.py

demo: weights
	$(BIN)/python examples/quickstart.py

test: weights
	$(BIN)/python -m pytest -q

census: venv
	$(BIN)/qfpass census --configs docs/models.json --out docs/models.md

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
