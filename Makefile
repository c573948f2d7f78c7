# The two commands: `make demo` and `make test`. Each sets up .venv on a fresh machine and does its job.
PYTHON ?= python3
BIN := .venv/bin
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto  # a process for each core, so one thread in each

.PHONY: demo test test-all test-cuda test-harness test-browser lint clean

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "omni needs Python 3.11 or later; set it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "Python's venv module is missing; on Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"  # knows dependency groups
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[train,eval,demo]"
	$(BIN)/pip install --quiet --disable-pip-version-check --group dev
	@touch $@

demo: .venv/.installed  ## what this machine has, and the model in the box on real files
	@$(BIN)/omni doctor
	@$(BIN)/python demos/quiz.py

test: .venv/.installed  ## everything but the slow tests, with coverage
	$(TESTS) -m "not slow and not gpu" --cov --cov-report=term --cov-fail-under=90

test-all: .venv/.installed  ## the slow tests too
	$(TESTS) -m "not gpu"

CUDA := .venv/cuda
UNBUILT := MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE \
  CAUSAL_CONV1D_FORCE_BUILD=TRUE
$(CUDA)/.installed: .venv/.installed
	$(UNBUILT) $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --upgrade \
	  --target $(CUDA) "mamba-ssm>=2.2" "causal-conv1d>=1.5" einops
	@touch $@

test-cuda: $(CUDA)/.installed  ## mamba-ssm's kernels in Triton's interpreter, without a GPU
	TRITON_INTERPRET=1 MAMBA_DETERMINISTIC=1 PYTHONPATH=$(CUDA) $(TESTS) tests/test_kernels_cuda.py

test-harness: .venv/.installed  ## the plug-in for lm-eval, which is installed for it
	$(BIN)/pip install --quiet --disable-pip-version-check "lm-eval>=0.4.13"
	$(TESTS) tests/test_eval_lm_eval.py

test-browser: .venv/.installed  ## the demo in the system's Chromium, by Playwright, which is installed for it
	$(BIN)/pip install --quiet --disable-pip-version-check playwright
	$(BIN)/python -m pytest tests/test_demo_browser.py

lint: .venv/.installed  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info
