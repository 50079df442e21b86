# What one does with a checkout. `make` alone lists it. Needs Python 3.11 or later with venv, and make; nothing else
# is taken from the machine, and nothing is installed outside .venv.

# The first Python here that runs and is new enough; or yours: make demo PYTHON3=/opt/python3.12/bin/python3
PYTHON3 ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
PYTHON := $(VENV)/bin/python
# Not -q: a fresh machine downloads for a minute, and silence looks like a hang.
PIP := $(PYTHON) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt --no-build-isolation --progress-bar off

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-quick lint format docs news wheel constraints clean distclean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22

demo: $(VENV)/.installed-to-run  ## a whole cluster on this machine, until Ctrl-C; TLS=0 for plain text; ARGS="…" passed on
	@$(PYTHON) -m securifile.local.demo $(if $(filter 0 no off,$(TLS)),--no-tls) $(ARGS)

test: $(VENV)/.installed-to-develop  ## all tests; ARGS="tests/http -x" for some
	@$(PYTHON) -m pytest $(ARGS)

lint: $(VENV)/.installed-to-develop  ## style and types
	@# All three, even when the first finds something.
	@status=0; for tool in "ruff check ." "ruff format --check ." mypy; do \
		echo "$$tool"; $(PYTHON) -m $$tool || status=1; done; exit $$status

format: $(VENV)/.installed-to-develop  ## put the style right where a program can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: $(VENV)/.installed-to-develop  ## speed against nginx and Swift, if they are here: half an hour; ARGS="get --rounds 3" for some
	@$(PYTHON) -m benchmarks $(ARGS)

bench-quick: $(VENV)/.installed-to-develop  ## the same, small, in minutes; ARGS="--before ../other-checkout get"
	@$(PYTHON) -m benchmarks --quick $(ARGS)

docs: $(VENV)/.installed-to-develop  ## docs/_build/html/index.html
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build/html

news: $(VENV)/.installed-to-develop  ## what the news of the next release would say
	$(PYTHON) -m towncrier build --draft --version next

wheel: $(VENV)/.installed-to-develop  ## dist/securifile-….whl
	rm -rf build
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

constraints: $(VENV)/.installed-to-develop  ## write the versions now in .venv to constraints.txt
	sed -n '/^#/p' constraints.txt > constraints.new
	$(PIP) freeze --all --exclude-editable --exclude securifile --exclude pip >> constraints.new
	mv constraints.new constraints.txt

clean:  ## remove what was built and the data of the demo; keeps .venv
	rm -rf build dist *.egg-info docs/_build demo-data .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find securifile benchmarks tests twisted docs -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -path ./$(VENV) -prune -o -name dropin.cache -type f -exec rm -f {} +

distclean: clean  ## remove .venv as well
	rm -rf $(VENV)

# The stamps: a second call installs nothing. setuptools is pinned and installed first, and packages are built with it
# (--no-build-isolation): otherwise each build would fetch whatever setuptools is newest that day.
$(VENV)/.python: constraints.txt
	@test -n "$(PYTHON3)" || { echo "SecuriFile needs Python 3.11 or later with the venv module (Debian: apt install python3-venv)." >&2; exit 1; }
	test -x $(PYTHON) || $(PYTHON3) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt setuptools
	@touch $@

$(VENV)/.installed-to-run: $(VENV)/.python setup.py pyproject.toml
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-to-develop: $(VENV)/.python setup.py pyproject.toml
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed-to-run
