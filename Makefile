# The words that people and CI both type. `make help` lists them.

# A recipe takes a variable from its environment, in quotes: "$$BASE". Out of $(BASE) a shell runs what a branch's name says.
# ARGS is words: `set -f` keeps them as they are, and nothing in them is run.
export PYTHON ?= python3
export RUN := .venv/bin/python
export RETRAIN ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-checks reproduce params report update upgrade lineage quantize serve image deploy rollback status doctor settings runner-doctor test lint test-yours test-journeys test-all workflows reference data-cifar10 suggest sweep check-model find-lr profile bench-train bench-gpu bench-serve starter record lock clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: .python
.python:
	@command -v "$$PYTHON" >/dev/null || { echo "setup: there is no $$PYTHON: install Python 3.11 to 3.13, or name one: make PYTHON=/path/to/python3.12 setup" >&2; exit 1; }

setup: .python ## make the virtual environment .venv with the pinned packages
	@"$$PYTHON" src/system/environment.py

setup-checks: .python ## the same, with what tests and lint need
	@"$$PYTHON" src/system/environment.py --checks

reproduce: setup ## pull the data, run the pipeline, show the metrics (PARAMS=params/cifar10.yaml puts a recipe into params.yaml first)
	@"$$RUN" -m src reproduce $${PARAMS:+--params "$$PARAMS"}

params: setup ## print every key of params.yaml with its value and what it means, set or default (PARAMS=params/cifar10.yaml)
	@"$$RUN" -m src params $${PARAMS:+--params "$$PARAMS"}

report: setup ## compare the last run with main (BASE=origin/main; RETRAIN= trains no lost model again), judge it, write out/report
	@"$$RUN" -m src compare "$${BASE:-origin/main}" out/main --arrays out/arrays --manifest out/manifest.parquet --model out/model $${RETRAIN:+--retrain}
	@"$$RUN" -m src judge out/main out/run.json out/report/verdict.json manifest.json --metrics metrics.json \
	  --evaluation out/evaluation --manifest out/manifest.parquet --validation out/validation.json --history out/history
	@"$$RUN" -m src report

update: ## merge main into this branch, with main's results where both have some (BASE=origin/main)
	@"$$PYTHON" -m src update "$${BASE:-origin/main}"

upgrade: setup ## bring a later version of the template into this repository, as a branch (TO=v1.1.0, TO=URL, TO=PATH; GO_ON=1: though the engine was changed here)
	@"$$RUN" -m src upgrade $${GO_ON:+--go-on} $${TO:+"$$TO"}

lineage: setup ## say where a model came from: MODEL=a file, a SHA-256 or a commit
	@"$$RUN" -m src lineage "$${MODEL:-out/model/model.onnx}"

quantize: setup ## make an INT8 model of the last one, and a table of what it costs and gains
	@"$$RUN" -m src quantize out/arrays out/model out/quantized

serve: setup ## serve the current model on port 3000, without Docker (ARGS="--port 3001")
	@set -f; "$$RUN" -m src serve $$ARGS

image: setup ## build the image of the current model, and check it
	@"$$RUN" -m src build --current

deploy: setup ## verify, register, build and deploy the model of this commit, behind the proxy (AGAIN=1: also unchanged)
	@"$$RUN" -m src release out/release $${AGAIN:+--again}

rollback: setup ## bring the version before back in seconds (VERSION=a number, REASON="why")
	@"$$RUN" -m src rollback --version "$$VERSION" --reason "$$REASON"

status: setup ## say what serves, since when, from which pull request, and what was before
	@"$$RUN" -m src status

doctor: ## say which settings on GitHub are missing, with the command for each (reads only, through gh)
	@"$$PYTHON" -m src doctor .github/settings

settings: ## make the settings on GitHub what .github/settings says (asks first; ARGS=--dry-run or ARGS=--yes)
	@set -f; "$$PYTHON" -m src settings .github/settings $$ARGS

runner-doctor: ## check a machine that is to be a self-hosted GPU runner (run it there)
	@"$$PYTHON" -m src runner-doctor

test: setup-checks test-yours lint ## test-yours, lint, and the fast tests; no GPU, Docker or account
	@"$$RUN" -P -m pytest -m "not journey and not template" --ignore tests/test_yours.py --numprocesses auto --dist loadfile

lint: setup-checks ## ruff and mypy; of src/data.py, src/model.py and tests/test_yours.py only what breaks at run time
	@"$$RUN" -P -m ruff check .
	@"$$RUN" -P -m ruff check --select E9,F50,F52,F63,F7,F82 src/data.py src/model.py tests/test_yours.py
	@"$$RUN" -P -m ruff format --check .
	@"$$RUN" -P -m mypy

test-yours: setup-checks ## the contract of your data, params and network, in under a minute
	@test -e data || "$$RUN" -P -m dvc pull --quiet data.dvc || true # where data cannot be had, the tests say what to do
	@TEST_ROOT="$$PWD" "$$RUN" -P -m pytest tests/test_yours.py -rs

test-journeys: setup-checks ## the journeys: trains, clones, fills disks, deploys (with Docker and nginx where they are)
	@"$$RUN" -P -m pytest -m "journey and not act" --numprocesses auto --dist loadfile

workflows: setup-checks ## run the GitHub workflows with act against a stand-in for GitHub
	@"$$RUN" -P -m pytest -m act

test-all: setup-checks test-yours ## all tests
	@"$$RUN" -P -m pytest --ignore tests/test_yours.py

reference: ## record the image statistics of the last run as what later data are compared with
	@test -f out/profile/statistics.json || { echo "reference: there is no profile yet: run make reproduce first" >&2; exit 1; }
	@cp out/profile/statistics.json reference.json && echo "reference.json holds the statistics of the current data: commit it"

data-cifar10: setup ## replace data/ by CIFAR-10 (from its home page, or from CIFAR10_URL)
	@"$$RUN" -m src data-cifar10 data
	@"$$RUN" -P -m dvc add --quiet data

suggest: setup ## look at data/ and write a recipe for it, params/suggested.yaml; changes and trains nothing
	@"$$RUN" -m src suggest data params/suggested.yaml

sweep: setup ## search better params on the validation split; killed, it goes on (ARGS="--trials 40")
	@PATH="$$PWD/.venv/bin:$$PATH" "$$RUN" -P -m dvc repro --quiet --pull validate
	@set -f; "$$RUN" -m src sweep out/arrays out/validation.json out/sweep $$ARGS

check-model: setup ## tell in a minute whether your network is wired right (ARGS="--steps 600")
	@set -f; "$$RUN" -m src check-model $$ARGS

find-lr: setup ## suggest a learning rate from a range test; changes nothing (ARGS="--steps 200")
	@set -f; "$$RUN" -m src find-lr out/arrays out/find-lr $$ARGS

profile: setup ## say what the bottleneck of training is, with a trace (ARGS="--steps 100")
	@set -f; KINETO_LOG_LEVEL=99 "$$RUN" -m src profile out/arrays out/training-profile $$ARGS

bench-train: setup ## measure a training step against the plain recipe's (ARGS="--arrays out/arrays")
	@set -f; "$$RUN" -m src bench-train $$ARGS

bench-gpu: setup ## the same on CIFAR-10 in out/arrays, with a ResNet-18 on a GPU
	@set -f; "$$RUN" -m src bench-train --arrays out/arrays --device cuda --network resnet18 --width 64 --batch 512 --images 49152 --least 5 $$ARGS

bench-serve: setup ## measure the service beside the textbook's, BentoML's own endpoint and the model alone (ARGS="--network resnet18 --input 224 --format jpeg")
	@set -f; "$$RUN" -m src bench-serve $$ARGS

starter: reproduce report ## put data, outputs, lineage and the project's own files into starter/ (for the template itself, not for forks)
	@rm -rf starter/files && "$$RUN" -P -m dvc push --quiet
	@cd starter/project && find . -type f -exec cp ../../{} {} \;
	@git add --force starter dvc.lock metrics.json manifest.json data.dvc

record: setup ## record what is staged as the version that CHANGELOG.md begins with (for the template itself, not for forks)
	@"$$RUN" -m src record
	@git add template.json

lock: .python ## resolve each requirements/*.in into its hashed lock; versions that are locked already stay
	@"$$PYTHON" src/system/environment.py --lock

clean: ## remove what the pipeline made (data/ and the DVC cache stay)
	@rm -rf out
