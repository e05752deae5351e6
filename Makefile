# Every target sets up what it needs: Python 3.11 or newer and make are enough.
#
#   make quickstart   train and evaluate a small reward model on this machine's CPU; OUT=folder for another place
#   make test         the quick tests, in two processes; JOBS=8 where there are more cores
#   make test-slow    the tests marked slow, in two processes too; WITHIN=600 begins none after as many seconds
#   make test-long    those of them that continuous integration runs last, if time is left
#   make benchmarks   compare this package with plain ways, on a quiet machine, for hours; fills the tables of docs/benchmarks.md
#   make lint         ruff, and mypy on the tree as it is shipped
#   make wheel-test   build the wheel, install it apart, run it from another directory
#   make install      everything a developer needs, in .venv
#   make clean        remove what the other targets built, except .venv

VENV ?= .venv
OUT ?= outputs/quickstart
JOBS ?= 2
PY := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip
ROOT := $(CURDIR)
SLOW = --dist worksteal --durations 12 -o faulthandler_timeout=1200 $(if $(WITHIN),--begin-within $(WITHIN) -rs --no-fold-skipped)

# The first interpreter that really runs and is new enough; PYTHON=/path/to/python overrides it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

.PHONY: install quickstart test test-slow test-long benchmarks lint wheel-test clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed-dev

quickstart: $(VENV)/.installed-base
	$(PY) -m ixc_lightning quickstart --out $(OUT)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -m "not slow and not gpu"

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) $(SLOW) -m "slow and not long and not gpu"

test-long: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) $(SLOW) -m "long and not gpu"

benchmarks: $(VENV)/.installed-dev
	set -e; for name in pair_forward reward_training token_budget checkpointing best_of_n scoring generation ppo_step data_throughput data_scale; do $(PY) benchmarks/$$name.py; done
	$(PY) benchmarks/tables.py

# Analysers do not follow the package map of an editable installation, so mypy reads an installed copy.
lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	rm -rf build/lib build/typecheck
	$(PIP) install --quiet --no-deps --target build/typecheck .
	cd build/typecheck && $(abspath $(PY)) -m mypy --config-file $(ROOT)/pyproject.toml --cache-dir ../mypy -p ixc_lightning

# The wheel is built from the source distribution. Its environment borrows the dependencies of .venv by path; a path file
# of .venv is not followed from there, so the editable installation stays out of sight.
wheel-test: WHEEL = build/wheel
wheel-test: $(VENV)/.installed-dev
	rm -rf $(WHEEL)
	$(PY) -m build --outdir $(WHEEL) .
	$(PY) -m venv --without-pip $(WHEEL)/venv
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(WHEEL)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	$(PIP) --python $(WHEEL)/venv/bin/python install --quiet --no-index --no-deps $(WHEEL)/*.whl
	$(PIP) --python $(WHEEL)/venv/bin/python check
	set -e; python="$(ROOT)/$(WHEEL)/venv/bin/python"; elsewhere="$$(mktemp -d)"; trap 'rm -rf "$$elsewhere"' EXIT; cd "$$elsewhere"; \
	"$$python" -c 'import ixc_lightning, sys; assert ixc_lightning.__file__.startswith(sys.prefix), ixc_lightning.__file__'; \
	"$$python" -m ixc_lightning --help; \
	"$$python" -m ixc_lightning recipes; \
	"$$python" -m ixc_lightning fit --config recipes/reward.yaml --print_config

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find ixc_lightning datamodules callbacks recipes tests -name __pycache__ -type d -exec rm -rf {} +

$(PY):
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Could not make $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed-base: pyproject.toml setup.cfg constraints.txt | $(PY)
	$(PIP) install -e . -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-base
	$(PIP) install -e ".[test,dev]" -c constraints.txt
	@touch $@
