.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*## "} {printf "  %-12s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cronplane needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: install
install: $(READY) ## Make the environment (.venv) from the lock file

.PHONY: test
test: $(READY) ## Run all tests on a real embedded PostgreSQL
	$(BIN)/python -m pytest

.PHONY: test-cluster
test-cluster: $(READY) ## Run the tests that need a cluster: KUBECONFIG set, kubectl and helm in PATH
	$(BIN)/python -m pytest tests/cluster

.PHONY: test-e2e
test-e2e: $(READY) ## Install the chart in the cluster of KUBECONFIG, use it, disturb it, and remove it
	$(BIN)/python -m pytest tests/installation

.PHONY: kind
kind: ## Run the tests that need a cluster in one made by kind (Docker, kind, kubectl and helm are needed)
	deploy/kind/test

HELM := $(shell command -v helm || echo $(BIN)/helm)

$(BIN)/helm: $(READY)
	GOBIN=$(abspath $(BIN)) go install helm.sh/helm/v3/cmd/helm@v3.19.0

.PHONY: chart
chart: $(READY) $(HELM) ## Check the chart without a cluster: helm in PATH, or Go, which makes it
	PATH="$(dir $(abspath $(HELM))):$$PATH" $(BIN)/python -m pytest tests/chart

.PHONY: chart-docs
chart-docs: $(READY) ## Make the schema and the table of the chart's values anew from the comments of values.yaml
	$(BIN)/python helm/values_reference.py

.PHONY: dist
dist: $(READY) $(HELM) ## Build wheel, sdist, chart package and image archive of a clean checkout into dist/
	PATH="$(dir $(abspath $(HELM))):$$PATH" deploy/dist

.PHONY: demo
demo: $(READY) ## Start the whole system with a cron of every entry; Ctrl-C stops it
	$(BIN)/python examples/demo/demo.py

.PHONY: bench
bench: $(READY) ## Measure, each figure beside its baseline of the same run (NAME=… for one of them)
	$(BIN)/python -m bench $(NAME)

.PHONY: bench-cluster
bench-cluster: $(READY) ## Measure how late Jobs are made in the cluster of KUBECONFIG, beside Kubernetes CronJobs
	$(BIN)/python -m bench.cluster

.PHONY: soak
soak: $(READY) ## Kill everything at random for half an hour; parts add up (MINUTES=… SEED=… STATE=…)
	$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),30) --state $(or $(STATE),.cronplane/soak) $(if $(SEED),--seed $(SEED))

.PHONY: lint
lint: $(READY) ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(READY) ## Strict types
	$(BIN)/mypy

.PHONY: layers
layers: $(READY) ## Imports point down only
	$(BIN)/lint-imports

.PHONY: check
check: lint types layers test ## Everything a change must pass

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-emit-find-links --no-annotate --custom-compile-command "make lock"

.PHONY: lock
lock: $(READY) ## Make the lock files anew from pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(COMPILE) --all-extras --group dev --output-file requirements.lock pyproject.toml
	$(COMPILE) --all-extras --constraints requirements.lock --output-file requirements-image.lock pyproject.toml
	$(COMPILE) --group build --constraints requirements.lock --output-file requirements-build.lock

.PHONY: clean
clean: ## Remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
