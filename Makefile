# Everything happens in a virtual environment of its own, which the first command makes.
#   make demo    a handful of photographs through a real worker and a real Redis
#   make test    all tests
#   make check   lint, format, types, import layers
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check format clean

demo:
	@$(PYTHON) tools/environment.py $(VENV) embedded
	@$(BIN)/fsworker demo

test: .dev
	$(BIN)/python -m pytest $(ARGS)

check: .dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: .dev
.dev:
	@$(PYTHON) tools/environment.py $(VENV) embedded,heic,test,check

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
