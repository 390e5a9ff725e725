# Every target makes .venv and installs what it needs; stamps in .venv make a second run install nothing.
#   make demo PYTHON=python3.12                 another interpreter for a new .venv
#   make demo PIP_FLAGS="--extra-index-url ..."  more words for pip (a CPU index, a mirror)
#   make test ARGS="-k ddim -x"                 more words for pytest

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PIP_FLAGS ?=
ARGS ?=
WORKERS ?= 2
# The interpreter that is active comes first: it is the one the reader chose.
CANDIDATES := python3 python python3.13 python3.12 python3.11 python3.14
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# Peers whose declared requirements would bring torchvision or CUDA: see pyproject.toml.
PEERS := azula==0.11.1 torchcfm==1.0.7 smalldiffusion==0.5.0 k-diffusion==0.1.1.post1 deepinv==0.5.0 zuko==1.6.0
# Small tensors gain nothing from threads, and two workers share two cores.
RUN := env OMP_NUM_THREADS=1 MPLBACKEND=Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test slow nightly lint format notebooks docs bench constraints clean distclean
.DELETE_ON_ERROR:

help:  ## Say what there is to make
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.stamp-core  ## Make .venv with the package and what it needs to run

demo: $(VENV)/.stamp-core  ## Train, sample and draw two moons, then digits; figures go to out/demo
	@$(RUN) $(PY) -m sde demo $(ARGS)

test: $(VENV)/.stamp-test  ## Run the tests (ARGS="-k name" picks some)
	$(RUN) $(PY) -m pytest -n $(WORKERS) $(ARGS)

slow: $(VENV)/.stamp-test  ## Run the slow tests
	$(RUN) $(PY) -m pytest -n $(WORKERS) -m "slow and not gpu" --timeout 900 $(ARGS)

nightly: $(VENV)/.stamp-test  ## Run the full products: every solver on every SDE
	$(RUN) $(PY) -m pytest -n $(WORKERS) -m "(nightly or slow) and not gpu" --timeout 3600 $(ARGS)

lint: $(VENV)/.stamp-lint  ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

format: $(VENV)/.stamp-lint  ## Mend style and formatting where a machine can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

notebooks: $(VENV)/.stamp-test $(VENV)/.stamp-notebooks  ## Check that notebooks match their sources, and run them at smoke size
	@$(RUN) SDE_SMOKE=1 $(PY) .ci/notebooks.py $(ARGS)

docs: $(VENV)/.stamp-docs  ## Build the documentation to docs/_build/html; a warning is an error
	@if [ -f docs/conf.py ]; then \
	  $(RUN) $(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html $(ARGS) && echo "open docs/_build/html/index.html"; \
	else echo "docs/conf.py is not there: no documentation to build"; fi

bench: $(VENV)/.stamp-bench  ## Measure speed and accuracy against peer libraries
	@if [ -f benchmarks/__main__.py ]; then $(RUN) $(PY) -m benchmarks $(ARGS); \
	else echo "benchmarks/__main__.py is not there: nothing to measure"; fi

constraints: $(VENV)/.stamp-test $(VENV)/.stamp-lint $(VENV)/.stamp-docs $(VENV)/.stamp-notebooks  ## Pin in constraints.txt what .venv holds
	@$(PY) .ci/constraints.py

clean:  ## Remove what was made, and keep .venv
	rm -rf out build dist docs/_build docs/_generated notebooks/_build .pytest_cache .ruff_cache .hypothesis .jupyter_cache
	find sde tests benchmarks docs notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## Remove .venv too
	rm -rf $(VENV)

# One rule for all extras. An environment made by hand is taken over and brought to the pinned versions.
$(VENV)/.stamp-%: pyproject.toml constraints.txt
	@$(MAKE_VENV)
	@echo "Installing sde with what '$*' needs into $(VENV) (the first time takes some minutes)"
	@extra='[$*]'; if [ '$*' = core ]; then extra=; fi; \
	$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e ".$$extra" || { \
	  echo "pip could not install sde$$extra: see its last lines above. Without network, set PIP_FLAGS to a mirror or a folder" >&2; \
	  echo "of wheels (--find-links DIR); if $(VENV) itself is damaged, remove it with 'make distclean' and try again." >&2; exit 1; }
	@if [ '$*' = bench ]; then $(PY) -m pip install $(PIP_FLAGS) --no-deps $(PEERS); fi
	@touch $@

define MAKE_VENV
if $(PY) -m pip --version >/dev/null 2>&1; then \
  $(PY) -c '$(NEW_ENOUGH)' || { \
    echo "$(VENV) was made by $$($(PY) --version), but sde needs Python 3.11 or newer: remove it with 'make distclean' and try again." >&2; exit 1; }; \
  [ -w $(VENV) ] || { echo "$(VENV) cannot be written: make it yours with 'sudo chown -R $$(id -un) $(VENV)', or remove it." >&2; exit 1; }; \
else \
  [ -w . ] || { echo "$$(pwd) cannot be written: copy the repository to a folder of yours, or change the folder's owner." >&2; exit 1; }; \
  python=; for p in $(if $(PYTHON),'$(PYTHON)',$(CANDIDATES)); do \
    if "$$p" -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then python="$$p"; break; fi; done; \
  [ -n "$$python" ] || { \
    echo "sde needs Python 3.11 or newer, and $(if $(PYTHON),PYTHON=$(PYTHON) is none,none of $(CANDIDATES) is one)." >&2; \
    echo "Install one (Debian, Ubuntu: sudo apt install python3 python3-venv; macOS: brew install python@3.13; or python.org)," >&2; \
    echo "or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }; \
  echo "Making $(VENV) with $$("$$python" --version)"; \
  "$$python" -m venv $(VENV) || { \
    echo "$$python could not make $(VENV). On Debian and Ubuntu the module is a package of its own: sudo apt install python3-venv;" >&2; \
    echo "elsewhere name a complete Python: make PYTHON=/path/to/python3.12 ..." >&2; rm -rf $(VENV); exit 1; }; \
fi
endef
