# make demo | test | lint | docs | clean        another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
# Without tfc the newest JAX is installed, and the tests of the tfc coder are skipped.
TEST_EXTRAS ?= tfc,test
# More arguments of pytest, as in: make test PYTEST="-m 'not slow'"
PYTEST ?=
DOCS_VENV ?= .venv-docs

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	$(VENV)/bin/python -m sic_jax.cli.demo

test: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python -m pytest -n 2 --dist loadfile --durations=25 $(PYTEST)

lint: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/mypy

# Strict: a warning is an error. Notebooks run, so that it takes about two minutes.
docs: $(DOCS_VENV)/.installed
	$(DOCS_VENV)/bin/python -m sphinx -W --keep-going -q docs docs/_build/html

clean:
	rm -rf $(VENV) $(TEST_VENV) $(DOCS_VENV) build dist demo docs/_build *.egg-info

$(VENV)/.installed: EXTRAS =
$(TEST_VENV)/.installed: EXTRAS = [$(TEST_EXTRAS)]
$(DOCS_VENV)/.installed: EXTRAS = [docs]
$(VENV)/.installed $(TEST_VENV)/.installed $(DOCS_VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed, as in: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into $(@D) (takes some minutes the first time)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS)'
	@touch $@
