# make train | test | quality | style | docs | conformance | compatibility | newest | servers | bench | bench-tuning |
# chaos | publish-demo: each target installs its dependencies. README.md has the same commands without make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt
# Tests of a file share fixtures, so each file runs in one worker; a worker needs up to 2 GB.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile
# One thread for each core, as the launcher would choose with a warning.
THREADS = $${OMP_NUM_THREADS:-$$($(BIN)/python -c 'import psutil; print(psutil.cpu_count(logical=False) or 1)')}
export TOKENIZERS_PARALLELISM ?= true

.PHONY: train test quality style docs conformance compatibility newest servers bench bench-tuning chaos publish-demo clean
.DEFAULT_GOAL := train

# torch first: installed together with others, pip may choose another build of it.
$(VENV)/.package: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is too old; this needs Python 3.11 or newer. Set it with: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up $(VENV) (torch and Hugging Face libraries, some minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@$(INSTALL) -e ".[dev]"
	@touch $@

train: $(VENV)/.package
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/accelerate launch --config_file training/configs/accelerate/cpu_1.yaml \
		training/pretrain.py --config training/configs/python_docs.yaml --overwrite true
	@echo "Loading runs/pretrain/model in a fresh process and continuing \"The\":"
	@$(BIN)/python training/generate.py --model runs/pretrain/model --prompt "The" --max-new-tokens 60

test: $(VENV)/.dev
	@$(BIN)/python -m pytest $(PARALLEL)

quality: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell README.md Makefile pyproject.toml .ci .github hub_card scratch_gpt tests training
	@mkdir -p build/types && ln -sfn ../../training build/types/scratch_gpt_training
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

style: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The generated parts of the pages.
docs: $(VENV)/.dev
	@$(BIN)/python tests/documentation/pages.py

# Hugging Face's own model tests on our classes.
conformance: $(VENV)/.dev
	@$(INSTALL) -e ".[conformance]"
	@$(BIN)/python tests/conformance/fetch.py
	@$(BIN)/python -m pytest tests/conformance -q --import-mode=prepend

# Published folders in six versions of stock transformers, each installed in a separate folder.
compatibility: $(VENV)/.dev
	@$(BIN)/python tests/compatibility/run.py --out tests/compatibility/compatibility.json
	@$(BIN)/python tests/documentation/pages.py

# Greedy ids of vLLM, `transformers serve` and llama.cpp's server, each in a separate environment.
servers: $(VENV)/.dev
	@$(BIN)/python tests/servers/ask_servers.py --out tests/servers/servers.json
	@$(BIN)/python tests/documentation/pages.py

# The tests with the newest release of every library except torch, in a separate environment.
NEWEST_VENV ?= .venv-newest
newest:
	@rm -rf $(NEWEST_VENV)
	@$(PYTHON) -m venv $(NEWEST_VENV)
	@$(NEWEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt torch
	@$(NEWEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e ".[dev]"
	@$(NEWEST_VENV)/bin/python -m pip list --disable-pip-version-check
	@$(NEWEST_VENV)/bin/python -m pytest $(PARALLEL)

# An hour and a half on an idle machine. With a trained CHECKPOINT and an unseen TEXT, also the perplexity in int8.
# With DEDUP_PYTHON, the interpreter of an environment with datatrove and text-dedup, also near-duplicates.
BENCHES = training loss loop scaling plan loading main_job checkpoints tokenizers cleaning prepare lora publish
bench: $(VENV)/.dev
	@$(INSTALL) -e ".[bench]"
	@for name in $(BENCHES); do \
		echo "== $$name"; \
		$(BIN)/python tests/benchmarks/bench_$$name.py --out tests/benchmarks/$$name.json || exit; \
	done
	@$(if $(DEDUP_PYTHON),$(BIN)/python tests/benchmarks/bench_near_duplicates.py --python $(DEDUP_PYTHON))
	@$(BIN)/python tests/benchmarks/bench_decoding.py --out tests/benchmarks/decoding.json \
		$(if $(CHECKPOINT),--checkpoint $(CHECKPOINT) --text $(TEXT))
	@$(BIN)/python tests/benchmarks/targets.py
	@$(BIN)/python tests/documentation/pages.py

# Results of fine-tuning, several hours. DATA has books/, sms_spam.tsv and the book's two files of instructions.
DATA ?= $(SCRATCH_GPT_DATA)
bench-tuning: $(VENV)/.dev
	@$(BIN)/python tests/benchmarks/spam.py --books $(DATA)/books --spam $(DATA)/classification/sms_spam.tsv \
		--out tests/benchmarks/spam.json
	@$(BIN)/python tests/benchmarks/bench_classify.py --spam $(DATA)/classification/sms_spam.tsv \
		--out tests/benchmarks/classify.json
	@$(BIN)/python tests/benchmarks/bench_instruct.py --data $(DATA) --out tests/benchmarks/instruct.json
	@SCRATCH_GPT_DATA=$(DATA) $(BIN)/python tests/benchmarks/bench_languages.py
	@$(BIN)/python tests/benchmarks/follow.py --model runs/spam/base/model --data $(DATA) --out tests/benchmarks/follow.json
	@$(BIN)/python tests/benchmarks/bench_default_rates.py --data $(DATA) --out tests/benchmarks/default_rates.json
	@$(BIN)/python tests/benchmarks/bench_quality.py --data $(DATA)/tinyshakespeare.txt --minutes 5
	@$(BIN)/python tests/benchmarks/bench_quality.py --data $(DATA)/tinyshakespeare.txt --keep --minutes 15 \
		--long "--learning-rate 8e-3 --batch-size 32 --stride 16 --dropout 0.05 \
		--config-overrides initializer_range=0.07,hidden_size=192,num_attention_heads=6"
	@$(BIN)/python tests/benchmarks/safety.py --instructions $(DATA)/instruction-data.json \
		--out tests/benchmarks/safety.json

# Killed runs, damaged files, full disks and bad input, many of each kind: half an hour.
chaos: $(VENV)/.dev
	@$(BIN)/python tests/chaos/chaos.py

# The folder and card of the main job's model as they would be pushed; nothing is uploaded.
publish-demo: $(VENV)/.dev
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/accelerate launch --config_file training/configs/accelerate/cpu_1.yaml \
		training/pretrain.py --config training/configs/python_docs.yaml --output-dir runs/python-docs --overwrite true
	@$(BIN)/python training/publish.py runs/python-docs --repo user/python-docs --license apache-2.0 --dry-run
	@$(BIN)/python tests/helpers/render_card.py runs/python-docs/published --out tests/benchmarks/publish_demo.png

clean:
	@rm -rf $(VENV) .conformance runs build *.egg-info
