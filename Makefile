# The words that people and CI both type. `make help` lists them.

PYTHON ?= python3
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test test-all reference data-cifar10 bench-data starter lock clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make the virtual environment .venv with the pinned packages
	@command -v $(PYTHON) >/dev/null || { echo "setup: there is no $(PYTHON): install Python 3.11 to 3.13, or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) src/environment.py

reproduce: setup ## pull the data, run the pipeline, show the metrics
	@$(RUN) -m src.reproduce

test: setup ## lint, types and the fast tests; no GPU, Docker or account
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m pytest -m "not slow"

test-all: setup ## the fast and the slow tests
	@$(RUN) -m pytest

reference: ## record the image statistics of the last run as what later data are compared with
	@test -f out/profile/statistics.json || { echo "reference: there is no profile yet: run make reproduce first" >&2; exit 1; }
	@cp out/profile/statistics.json reference.json && echo "reference.json holds the statistics of the current data: commit it"

data-cifar10: setup ## replace data/ by CIFAR-10 (from its home page, or from CIFAR10_URL)
	@$(RUN) -m src.datasets.cifar10 data
	@$(RUN) -m dvc add --quiet data

bench-data: setup ## measure the data path against a plain DataLoader
	@$(RUN) -m src.benchmarks.data_path

starter: reproduce ## put data and outputs of the last run into starter/ (for the template itself, not for forks)
	@rm -rf starter/files && $(RUN) -m dvc push --quiet && git add --force starter dvc.lock metrics.json data.dvc

lock: ## resolve requirements/direct.txt into the hashed lock (needs uv)
	@command -v uv >/dev/null || { echo "lock: uv is not installed: pip install uv, then run make lock again" >&2; exit 1; }
	@uv pip compile requirements/direct.txt --universal --python-version 3.11 --generate-hashes --no-header --quiet --output-file requirements/lock.txt

clean: ## remove what the pipeline made (data/ and the DVC cache stay)
	@rm -rf out
