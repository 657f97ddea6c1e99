# Everything runs in a virtual environment of its own, made on first use. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS ?= runs/embedded

.PHONY: help train smoke bench test slow gpu rounding parity accelerators docs look wheel lint audit clean
.DELETE_ON_ERROR:

help:  ## This list.
	@sed -n 's/^\([a-z]*\):.*##\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

$(READY): requirements.txt requirements-dev.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

train: $(READY)  ## Train PGD-AT, PIAT and PIAT+NMSE on the embedded data, evaluate, and write a report.
	$(BIN)/piat-sweep --config=embedded --methods=pgd_at,piat,nmse+piat --workdir=$(RUNS)

smoke: $(READY)  ## The same in three minutes: two epochs of each, to see that everything runs.
	$(BIN)/piat-sweep --config=embedded --methods=pgd_at,piat,nmse+piat --workdir=runs/smoke --overwrite --config.epochs=2

# BENCH takes its flags. PyTorch is measured too if it is installed: $(BIN)/python -m pip install torch
bench: $(READY)  ## Throughput of training, evaluation and AutoAttack, beside PyTorch's where it is installed.
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m experiments.throughput.benchmark $(BENCH)

# Tests of one file share compiled functions, so a file stays with one process. All keep what they compile in .cache/jax
# (tests/conftest.py); what is a month old is compiled anew, for most of it is of programs that are no more.
test: $(READY)  ## The tests, without the slow ones, in as many processes as there are cores.
	@mkdir -p .cache/jax && find .cache/jax -type f -mtime +30 -delete
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile -m "not slow"

slow: $(READY)  ## The tests that `make test` leaves out: tests/slow.txt lists them.
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile -m slow

# Processors round differently, and so do XLA's emitters; `make test` takes the one that compiles faster
# (tests/conftest.py). Of the slow tests this has those that compare more exactly under users' emitter.
# ISA names the widest instructions that XLA may use: AVX512, AVX2, AVX, SSE4_2.
ISA ?= AVX2
rounding: $(READY)  ## The numerical tests and doctests as users' XLA rounds, on a processor with no more than AVX2.
	USERS_EMITTER=1 XLA_FLAGS=--xla_cpu_max_isa=$(ISA) $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile \
		-m "rounding or not slow" tests/attacks tests/averaging tests/core tests/evaluation tests/test_losses.py \
		tests/test_modes.py piat_jax tests/models/test_vit.py tests/programs/test_winograd.py \
		tests/training/test_encoded_stream.py

# What needs several devices is skipped. PROCESSES share the GPU.
PROCESSES ?= 8
gpu: $(READY)  ## The tests on this machine's GPU, after pip install '.[cuda12]' into the environment.
	JAX_PLATFORMS=cuda,cpu $(BIN)/python -m pytest --numprocesses=$(PROCESSES) --dist=loadfile

# The same tests without PyTorch compare with small golden files.
parity: $(READY)  ## The tests against PyTorch, torchvision, timm, wandb and MLflow, which it installs.
	$(BIN)/python -m pip install --quiet -r requirements-parity.txt
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile tests/interop tests/loggers tests/cli/test_convert.py \
		tests/test_torch_reference.py tests/test_torch_optimizers.py tests/test_throughput.py tests/test_readme.py

# XLA compiles for devices that are not here, with packages of 1.1 GB in an environment of their own. They are those of
# jax 0.12, which needs Python 3.12: the first of these interpreters that is as new is taken.
COMPILERS ?= .venv-accelerators
$(COMPILERS)/.ready: requirements.txt requirements-accelerators.txt
	@for python in $(PYTHON) python3.12 python3.13; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null; then \
			exec $$python -m venv $(COMPILERS); \
		fi; \
	done; \
	echo "python 3.12 or newer is needed: make accelerators PYTHON=..." >&2; exit 1
	$(COMPILERS)/bin/python -m pip install --quiet -r requirements.txt -r requirements-accelerators.txt
	@touch $@

# What tests/conftest.py sets is for programs that run here.
accelerators: $(COMPILERS)/.ready  ## Compile the programs for GPUs and TPUs that are not here, and look at them.
	JAX_PLATFORMS=cpu $(COMPILERS)/bin/python -m pytest --confcutdir=tests/accelerators --numprocesses=2 \
		--dist=worksteal tests/accelerators

# Its tutorials are executed. What they compile is kept, so a second time takes a part of the first.
docs: $(READY)  ## The documentation, in site/: tutorials are executed, warnings are errors.
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	@mkdir -p .cache/jax
	JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax PYTHONWARNINGS= NO_MKDOCS_2_WARNING=1 \
		$(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/check_site.py site

look: docs  ## Open every page of the site in a Chromium, light, dark and on a phone; pictures in site-pictures/.
	$(BIN)/python -m pip install --quiet playwright
	$(BIN)/python docs/open_site.py site site-pictures

wheel: $(READY)  ## Build the sdist and its wheel, and try the wheel in an empty environment.
	$(BIN)/python -m pip install --quiet build
	rm -rf dist
	$(BIN)/python -m build --outdir dist . > /dev/null
	$(BIN)/python tests/installed.py dist/*.whl requirements.txt

lint: $(READY)  ## Format, lint, who imports whom, and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache pyproject.toml
	$(BIN)/pyright --pythonpath $(BIN)/python

# Asks pypi.org, about everything that is installed; what it does not know is listed and not audited.
audit: $(READY)  ## Known vulnerabilities of the packages this runs with.
	$(BIN)/python -m pip install --quiet -r requirements-audit.txt
	$(BIN)/pip-audit --local --skip-editable --progress-spinner=off

clean:  ## Remove the virtual environment and caches; runs/ stays.
	rm -rf $(VENV) $(COMPILERS) .cache .pytest_cache .ruff_cache build dist *.egg-info
