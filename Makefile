# Two commands do everything: `make demo` and `make test`. ARGS go to the program,
# for instance: make demo ARGS='--exit --frames 50'

VENV := .venv
STAMP := $(VENV)/.installed
STAMP_TEST := $(VENV)/.installed-test
INPUTS := pyproject.toml constraints.txt
ARGS ?=

# A shim of that name may exist and fail, so each candidate is run.
PYTHON = $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 13)))' 2>/dev/null && echo $$python && break; done)

.PHONY: demo test lint audit peers clean

demo: $(STAMP)
	$(VENV)/bin/cxls demo $(ARGS)

test: $(STAMP_TEST) lint
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(STAMP_TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; none of python3.11, python3.12, python3 is one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(VENV)/bin/python $(INPUTS)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

$(STAMP_TEST): $(STAMP)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@

# Known vulnerabilities of what constraints.txt pins. Asks an advisory database, so it needs the internet.
audit: .venv-audit/.installed
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

.venv-audit/.installed:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed" >&2; exit 1; }
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --disable-pip-version-check -q pip-audit
	@touch $@

# Other groups' software, each in its own environment because of its own pins.
peers: .venv-om/.installed .venv-tickit/.installed

.venv-om/.installed:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed" >&2; exit 1; }
	$(PYTHON) -m venv .venv-om
	.venv-om/bin/python -m pip install --disable-pip-version-check -q ondamonitor 'numpy<2' hdf5plugin h5py scipy
	@touch $@

.venv-tickit/.installed:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed" >&2; exit 1; }
	$(PYTHON) -m venv .venv-tickit
	.venv-tickit/bin/python -m pip install --disable-pip-version-check -q tickit-devices 'cbor2<6'
	@touch $@

clean:
	rm -rf $(VENV) .venv-om .venv-tickit .venv-audit
