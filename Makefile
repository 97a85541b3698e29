# make fit    train the quickstart        make test       run the tests, in two processes of one thread each
# make check  style and types           make coverage   the tests with branch coverage
# All set everything up first, in .venv; nothing else is needed than Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: fit test check coverage format clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

fit: $(INSTALLED)
	$(BIN)/python -m engine.fit --config configs/quickstart.yaml

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The same tests with branch coverage of the packages, processes of their own included; takes longer.
coverage: check
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

format: $(INSTALLED)
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .coverage* .ruff_cache .hypothesis
