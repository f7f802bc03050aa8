# One target a stage: `make train ARGS="train.steps=100"` is `.venv/bin/python -m pipeline train train.steps=100`.
# Every target sets the environment up first where that is needed.

STAGES := fetch hash dedup lm mine near references regenerate regroup sources tokenizer tokenize train evaluate export report all
RUN := .venv/bin/python
READY := .venv/.setup

# The Python that the environment is made with: the first that runs and has the right version.
RIGHT_VERSION := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(firstword $(shell for python in $(RUN) python3.12 python3.11 python3; do \
	"$$python" -c '$(RIGHT_VERSION)' 2>/dev/null && echo "$$python"; done; echo python3))

# What the benchmarks read: real pages, texts and models.
DATA := $(or $(SHARED_DATA),../shared/data)
TEXTS := $(wildcard $(DATA)/text/*.txt $(DATA)/text/*.gz $(DATA)/text/books/*.gz $(DATA)/crawl/segments/*.gz)

.DEFAULT_GOAL := help
.PHONY: help setup demo submit status logs cancel test test-all lint bench bench-data bench-sources bench-tokens bench-model bench-train slurm-dev clean $(STAGES)

help: ## this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  make STAGE ARGS="key=value …", where STAGE is one of'
	@echo '       $(STAGES)'

setup: ## the environment: .venv, KenLM's programs, the language identification model
	@$(PYTHON) pipeline/setup.py

$(READY): pyproject.toml constraints.txt pipeline/setup.py
	@$(PYTHON) pipeline/setup.py

$(STAGES): $(READY)
	@$(RUN) -m pipeline $@ $(ARGS)

demo: $(READY) ## everything, from a crawl written on the spot to a trained model
	@$(RUN) -m pipeline all experiment=demo $(ARGS)

submit status logs cancel: $(READY) ## stages on Slurm: make submit STAGE=all ARGS="experiment=demo executor=slurm"
	@$(RUN) -m jobs $@ $(or $(STAGE),all) $(ARGS)

test: $(READY) ## the tests that are fast
	$(RUN) -m pytest -q -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: $(READY) ## all tests
	$(RUN) -m pytest -q -n 2 --dist loadfile $(ARGS)

lint: $(READY) ## ruff, mypy and the import rules
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	.venv/bin/lint-imports

bench-data: $(READY) ## the data stage beside its peers and the obvious versions; takes the test data
	@$(RUN) -m benchmarks.reading $(wildcard $(DATA)/crawl/segments/*.gz)
	@$(RUN) -m benchmarks.paragraph_keys $(wildcard $(DATA)/crawl/segments/*.gz)
	@$(RUN) -m benchmarks.dedup $(wildcard $(DATA)/crawl/segments/*.gz)
	@$(RUN) -m benchmarks.language_id
	@$(RUN) -m benchmarks.perplexity $(DATA)/lm $(wildcard $(DATA)/crawl/segments/*.gz)
	@$(RUN) -m benchmarks.ccnet_parity
	@$(RUN) -m benchmarks.data_stage

bench-tokens: $(READY) ## encoding beside SentencePiece and tokenizers, the loader beside Megatron's; takes the test data
	@$(RUN) -m benchmarks.encoding $(DATA)/models/llama2_tokenizer.model $(TEXTS)
	@$(RUN) -m benchmarks.loader

bench-model: $(READY) ## the model: kept activations, speed and memory beside transformers
	@$(RUN) -m benchmarks.llama

bench-train: $(READY) ## training beside Hugging Face's Trainer and beside a bare loop
	@$(RUN) -m benchmarks.train

bench-sources: $(READY) ## LLaMA's other sources beside mwparserfromhell, datasets and plain Python; takes the test data
	@$(RUN) -m benchmarks.sources $(DATA)

bench: bench-data bench-sources bench-tokens bench-model bench-train ## all of them

slurm-dev: $(READY) ## a Slurm cluster of two nodes on this machine, until Ctrl-C; needs slurm-wlm and munge
	@$(RUN) tests/slurm_cluster.py $(ARGS)

clean: ## remove caches; out/ and .venv/ stay
	rm -rf build *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(filter-out out/,$(sort $(dir $(wildcard */*)))) -name __pycache__ -prune -exec rm -rf {} +
