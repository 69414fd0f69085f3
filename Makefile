# Every target sets up .venv by itself, once; a second call starts at once.
# PYTHON picks the interpreter for the set-up: make env PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
N ?= 100
SEED ?= 0

.PHONY: help env demo test lint bench

help:
	@echo "make demo   set up, paint a tour with the built-in model, and print the page's path"
	@echo "make test   set up, run the fast tests"
	@echo "make lint   set up, ruff and pyright"
	@echo "make bench  set up, 'sfumato bench generate' (N=$(N) SEED=$(SEED)), then the slow tests"
	@echo "make env    only the set-up"

env: $(STAMP)

# torch comes first and alone, at its pinned version: whichever build of it the machine's pip is set up to give
# then satisfies everything that follows, and no second one is drawn. All cores compile, where pip
# would by one; some files that packages bring are templates, which nobody can compile.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' here; Sfumato needs Python 3.10 or newer (make env PYTHON=/path/to/python3)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: Sfumato needs Python 3.10 or newer, '$(PYTHON)' is $$($(PYTHON) -V 2>&1) (make env PYTHON=/path/to/python3)" >&2; exit 1; }
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || :
	@touch $@

demo: $(STAMP)
	@$(BIN)/sfumato tour --out out/tour

# a process a core (four at most), each with one thread: threads that wait for each other's cores are slower than none.
# Compiled tests are kept, whatever a shell is set up for: to compile them anew takes each process twenty seconds.
test: $(STAMP)
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright src

bench: $(STAMP)
	@$(BIN)/sfumato bench generate --n $(N) --seed $(SEED)
	@$(BIN)/python -m pytest -m slow
