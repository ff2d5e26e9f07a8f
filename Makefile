# Everything happens in a virtual environment of its own, which the first command makes.
#   make demo    a handful of photographs through a real worker and a real Redis
#   make test    all tests
#   make torture the store's long runs: every crash point, every order, power cuts (about twenty minutes; root for some)
#   make chaos   ten minutes of ingest while processes, Redis, network and disk are broken (root for the disk)
#   make compose the stack of compose.yaml, in containers (Docker Compose 2, root, a network)
#   make check   lint, format, types, import layers
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test torture chaos compose check format clean

demo:
	@$(PYTHON) tools/environment.py $(VENV) embedded
	@$(BIN)/fsworker demo

test: .dev
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

torture: .dev
	FSWORKER_TORTURE=1 $(BIN)/python -m pytest -s tests/crash tests/test_stress.py $(ARGS)

chaos: .dev
	$(BIN)/python tests/chaos.py $(or $(ARGS),--seconds 600)

compose: .dev
	FSWORKER_COMPOSE=1 $(BIN)/python -m pytest -s tests/test_compose.py $(ARGS)

check: .dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The corpus of test pictures beside their thumbnails, in one page to look at.
contact-sheet: .dev
	$(BIN)/python tools/contact_sheet.py $(or $(CORPUS),../shared/corpus) contact-sheet.html

format: .dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: .dev
.dev:
	@$(PYTHON) tools/environment.py $(VENV) embedded,heic,test,check

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
