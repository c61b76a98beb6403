# kdpipe. `make help` lists what there is.
#
#   PYTHON   the interpreter that the environment is made with (3.11 or newer)
#   VENV     where the environment lies
#   ARGS     more arguments, for Snakemake (demo, report), pytest (test) or the benchmark (bench)

.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
STUDY ?= digits_demo
DATA ?= data/cifar100
WORKERS ?= 2
PORT ?= 5000

# The studies that `make theory` runs: every bench once. Studies of single figures extend these.
THEORY := kernelregime_linearised,kernelregime_section4,kernelregime_theorem2,selfdistill_digits,selfdistill_figures2to4,selfdistill_two_class
# Where `make smoke-all` puts its results: apart from those of studies as they are written.
SMOKE := results/smoke

BIN := $(VENV)/bin
# Named after the content it was made from: a changed lock is installed again, a fresh check-out is not.
READY := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d ' ' -f 1)
SNAKEMAKE := $(BIN)/snakemake --workflow-profile workflow/profiles/local

export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONNOUSERSITE := 1

.PHONY: help demo table test cluster-test drills lint fix docs lock report ui mlflow-server theory smoke-all bench bench-gpu clean clean-results

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## Train the demo study and print its table (the first time, install everything)
	@$(SNAKEMAKE) $(ARGS)
	@echo "The report is results/report/index.html; 'make table' prints the table again."

table: $(READY) ## Print the demo study's table
	@$(BIN)/kdpipe table --show $(STUDY)

test: $(READY) ## Run the tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup $(ARGS)

cluster-test: $(READY) ## Start a SLURM on this machine and send a study through it (ARGS="--long" also sends 200 jobs)
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/cluster $(ARGS)

drills: $(READY) ## Kill, starve and damage small runs hundreds of times; the outcomes go to results/drills.md (an hour)
	@KDPIPE_DRILLS=long OMP_NUM_THREADS=1 $(BIN)/pytest tests/reliability --timeout 14400 $(ARGS)

lint: $(READY) ## Check style, types, import directions, generated files and the workflow
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tools --check
	$(BIN)/snakemake --lint

fix: $(READY) ## Mend what lint finds, where a tool can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/snakefmt Snakefile workflow/rules
	$(BIN)/python -m tools

docs: $(READY) ## Write the generated files: ARCHITECTURE.md, environment.yml, config/schemas, docs/plugins
	$(BIN)/python -m tools

lock: $(READY) ## Pin pyproject.toml's dependencies in requirements.lock (ARGS=--upgrade for newer versions)
	$(BIN)/python -m tools.lock $(ARGS)
	$(BIN)/python -m tools

report: $(READY) ## Build the report and Snakemake's own, which shows how each file was made
	@$(SNAKEMAKE) $(ARGS)
	@$(BIN)/snakemake --report results/report/workflow.html
	@echo "results/report/index.html and results/report/workflow.html"

ui: $(READY) ## Open the embedded store's runs in MLflow on this machine (PORT=5000)
	@test -f results/mlflow.db || { echo "results/mlflow.db is not there: run 'make demo' first" >&2; exit 2; }
	@$(BIN)/kdpipe serve --database sqlite --port $(PORT) $(ARGS)

mlflow-server: $(READY) ## Serve MLflow for runs, on PostgreSQL where it is installed (PORT=5000; see docs/mlflow.md)
	@$(BIN)/kdpipe serve --port $(PORT) $(ARGS)

theory: $(READY) ## Draw the theory papers' figures, each with its verdicts (minutes; see docs/guides/theory.md)
	@$(SNAKEMAKE) --config "studies=[$(THEORY)]" $(ARGS)
	@echo "The figures and verdicts are in results/report/index.html."

smoke-all: $(READY) ## Run every study at its smallest, on images that need no download (an hour or two on two cores)
	@$(SNAKEMAKE) --config scale=smoke results=$(SMOKE) \
		"studies=[$$(cd config/studies && ls *.yaml | sed 's/\.yaml$$//' | paste -sd ,)]" $(ARGS)
	@echo "The report is $(SMOKE)/report/index.html. Its numbers say that things run, and nothing else."

bench: $(READY) ## Measure steps beside the field's usual loop, start-up, planning, tables (minutes; DATA=data/cifar100)
	$(BIN)/python -m benchmarks --data $(DATA) --out results/bench.json $(ARGS)
	$(BIN)/python -m benchmarks --check results/bench.json

bench-gpu: $(READY) ## The same steps on a GPU (DATA=data/cifar100)
	$(BIN)/python -m benchmarks step methods packing --device cuda --steps 50 --data $(DATA) --out results/bench-gpu.json $(ARGS)

clean: ## Delete caches; results and the environment stay
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis .coverage htmlcov build dist *.egg-info
	@find kdpipe tests tools benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
	@echo "Caches are deleted; results/ and $(VENV)/ are kept."

clean-results: ## Delete every result, after asking
	@printf "This deletes everything in results/ but its README. Type yes to go on: "; read answer && test "$$answer" = yes || \
		{ echo "Nothing was deleted."; exit 1; }
	@find results -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	@rm -rf .snakemake logs
	@echo "The results are deleted."

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "kdpipe needs Python 3.11 or newer, and '$(PYTHON)' is not one: name another, as in 'make $(or $(firstword $(MAKECMDGOALS)),demo) PYTHON=python3.12'" >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
		echo "no virtual environment could be made in $(VENV): on Debian and Ubuntu, 'apt install python3-venv' mends it" >&2; exit 2; }
	@echo "Installing into $(VENV) (once; PyTorch is a large download)"
	@$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.ready-*
	@touch $@
