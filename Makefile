# Two commands on a fresh machine: `make demo` and `make test`. Needs Python >= 3.10 with venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test check format clean

demo: $(VENV)/.installed          ## the whole chain on generated scenes, about 5 minutes on 2 cores
	$(BIN)/tk demo --out demo

# A process per core, each with one thread, is twice as fast as one after the other with all threads.
test: check                       ## ruff, mypy and all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:                            ## forget the environment and the demo
	rm -rf $(VENV) demo

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "tk needs Python >= 3.10 with venv (Debian: apt install python3-venv); or name one: make PYTHON=python3.11 demo"; exit 3; }
	@echo "Installing into $(VENV): PyTorch with its CUDA libraries is about 5 GB on disk; minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(PIP) --editable ".[cpu,train,export]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	# sam2 comes as source only: built against the torch that is here, without its CUDA extension.
	SAM2_BUILD_CUDA=0 $(PIP) --no-build-isolation "sam2>=1.1"
	$(PIP) --editable ".[cpu,train,export,sam2,clearml,openvino]" --group dev
	# What losses and crops of the pre-training are compared with; it would bring PyTorch Lightning.
	$(PIP) --no-deps "lightly==1.6.0" "lightning-utilities>=0.15"
	@touch $@
