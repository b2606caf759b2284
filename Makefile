# make run   set up, build the embedded data set, search, open the test split for the front, report
# make test  set up, lint, type-check, run all tests that need no GPU
# make test-fast  the fast tests alone
# Both are safe to repeat; what is done is not done again.

PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/.installed

# the data set: TAU24_PATH where it is set, else the embedded one
DATA := $(or $(TAU24_PATH),tau-synthetic)
SPACE ?= kd_prune
# one study for each data set: its path's checksum is in the name
NAME ?= $(SPACE)-$(if $(TAU24_PATH),$(shell realpath -m '$(TAU24_PATH)' | cksum | cut -d ' ' -f 1),synthetic)
ARGS ?=

.PHONY: run test test-fast lint synthetic clean

run: $(INSTALLED) $(if $(TAU24_PATH),,synthetic)
	TAU24_PATH='$(DATA)' $(PY) tune/run.py --space $(SPACE) --name $(NAME) --resume $(ARGS)
	$(PY) tune/evaluate.py runs/$(NAME)

synthetic: $(INSTALLED)
	$(PY) -m data.synthetic tau-synthetic --eval 100

test: lint
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    apt-get install -y -qq chromium chromium-driver; } || \
	  { echo "the browser test needs Chromium and chromedriver: install them, or run pytest -m 'not browser'"; exit 1; }
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# without Ray, browser and slow tests: under a minute
test-fast: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile -m 'not slow and not ray and not browser and not gpu'

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
