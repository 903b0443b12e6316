# Every target sets up what it needs; `make help` lists them.
#   PYTHON  the interpreter that makes the virtual environment (3.11 or newer)
#   VENV    where the virtual environment lies
#   EXTRA   cpu or gpu; gpu where an NVIDIA driver is found
#   IMAGES  a folder of images for `make demo`, instead of the built-in ones
#   MODELS  trained models for `make serve`, as NAME=URI
#   ARGS    further arguments of pytest for `make test`

PYTHON ?= python3
VENV   ?= .venv
EXTRA  ?= $(shell if nvidia-smi >/dev/null 2>&1 || test -e /proc/driver/nvidia/version; \
                  then echo gpu; else echo cpu; fi)
IMAGES ?=
MODELS ?=
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint format setup clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup  ## extract, index, search and evaluate on a small collection; IMAGES=FOLDER for your own
	$(VENV)/bin/imgray demo $(if $(IMAGES),--images "$(IMAGES)")

SERVED = digits=out/models/digits materials=out/models/materials edges=out/models/edges \
         tint=out/models/tint

serve: setup  ## serve the demo's index and models, with a web page; MODELS="NAME=URI ..." adds more
	test -e out/models/edges/manifest.json -a -e out/models/tint/manifest.json || \
	  $(VENV)/bin/imgray demo --models --translator
	$(VENV)/bin/imgray serve --index out/photographs/index-2 --model $(SERVED) $(MODELS)

test: setup  ## run the tests; pyproject.toml says which
	$(VENV)/bin/python -m pytest -n 2 $(ARGS)

lint: setup  ## check style, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup  ## mend style and formatting
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(VENV)/installed  ## make the virtual environment, again only when the requirements change

# The two FAISS wheels share one module name, so whichever is there goes first.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "imgray needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip uninstall -qq --yes faiss-cpu faiss-gpu
	@echo "installing about 6 GB: some minutes the first time"
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRA),demo,dev]"
	@touch $@

clean:  ## remove the virtual environment and everything else that was made
	@test ! -e $(VENV)/installed || rm -rf $(VENV)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
