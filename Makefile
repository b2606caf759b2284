# make run   set up, build the embedded data set, search, open the test split for the front, report
# make test  set up, lint, type-check, run all tests that need no GPU
# make test-fast  the fast tests alone
# make gpu   check and measure the GPU of this machine in 5 minutes: figures in gpu-check/
# Both are safe to repeat; what is done is not done again.

PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/.installed

SPACE ?= kd_prune
NAME ?=
ARGS ?=
# The shell reads these values, not make, so a path may contain quotes and dollar signs.
override export TAU24_PATH := $(value TAU24_PATH)
override export SPACE := $(value SPACE)
override export NAME := $(value NAME)

.PHONY: run test test-fast gpu lint synthetic clean

# the data set is TAU24_PATH where it is set, else the embedded one; one study for each data set: the checksum of its
# path is in the name
run: $(INSTALLED) $(if $(value TAU24_PATH),,synthetic)
	@set -e; set=synthetic; \
	if [ -n "$$TAU24_PATH" ]; then set=$$(realpath -m -- "$$TAU24_PATH" | cksum | cut -d ' ' -f 1); fi; \
	name="$${NAME:-$$SPACE-$$set}"; export TAU24_PATH="$${TAU24_PATH:-tau-synthetic}"; set -x; \
	$(PY) tune/run.py --space="$$SPACE" --name="$$name" --resume $(ARGS); \
	$(PY) tune/evaluate.py "runs/$$name"

synthetic: $(INSTALLED)
	$(PY) -m data.synthetic tau-synthetic --eval 100

# three processes on two cores: many tests wait for a process or a lease
test: lint
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    apt-get install -y -qq chromium chromium-driver; } || \
	  { echo "the browser test needs Chromium and chromedriver: install them, or run pytest -m 'not browser'"; exit 1; }
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# without Ray, browser and slow tests: under a minute
test-fast: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile -m 'not slow and not ray and not browser and not gpu'

gpu: $(INSTALLED)
	$(PY) tests/bench/gpu_check.py $(ARGS)

lint: $(INSTALLED)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright

clean:
	rm -rf .venv runs tau-synthetic

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	[ -x $(PY) ] || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@
