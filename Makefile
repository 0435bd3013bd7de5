# The course's commands. Each makes .venv if it is missing or out of date.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready

help:
	@echo 'make setup    make the environment .venv (TORCH=cpu: with PyTorch'"'"'s CPU builds, 6 GB less)'
	@echo 'make run      execute all notebooks, and write pages of them: build/index.html'
	@echo 'make test     unit tests, and every output in the notebooks compared (NB=03: one notebook)'
	@echo 'make test-matrix  the same in other settings: instructions, threads, PyTorch, Python; hours'
	@echo 'make lab      JupyterLab on notebooks/'
	@echo 'make refresh  execute the notebooks in place (NB=03: one)'
	@echo 'make badges   write REPO=owner/name BRANCH=main into badges and set-up cells'
	@echo 'make lint     ruff, on code and notebooks'
	@echo 'make tables   run the long experiments whose results the notebooks show (TABLE=qat: one)'
	@echo 'make bench    how fast the code is beside plain loops, torch, a naive search: build/bench.md'
	@echo 'make fuzz     10,000 damaged files of integer models, none of which may do harm (SEED=1: others)'
	@echo 'make colab    each notebook alone, as on Colab, installed from the last commit (NB=03: one)'
	@echo 'make kills    kill what writes files, at every step and at random; count what is lost or half there'
	@echo 'make times    measure the notebooks'"'"' times, and write them into openings and README (NB=03: one)'
	@echo 'make clean    remove build/ and caches'

# The environment is current if it was made in this folder, still runs, and is newer than the pins.
ifneq ($(shell $(PY) -c "print(open('$(READY)').read())" 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is not: install one, then say make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c constraints.txt $(CPU_INDEX) -e ".[dev,deploy]"
	@printf '%s' '$(CURDIR)' > $@

ifeq ($(TORCH),cpu)
CPU_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
else ifneq ($(TORCH),)
$(error TORCH is $(TORCH); it may be cpu or unset)
endif

# The notebook that NB asks for, or none where NB is not given.
NOTEBOOK = $(if $(NB),$(or $(wildcard notebooks/$(NB)*.ipynb),$(error no notebook's name begins with $(NB))))

setup: $(READY)

run: $(READY)
	@$(PY) -m tools.notebooks run

test: $(READY)
	@$(PY) -m pytest $(NOTEBOOK)

test-matrix: $(READY)
	@$(PY) -m tests.matrix

lab: $(READY)
	@$(PY) -m jupyterlab --notebook-dir=notebooks

refresh: $(READY)
	@$(PY) -m tools.notebooks refresh $(NB)

badges: $(READY)
	@$(PY) -m tools.badges $(if $(REPO),--repo $(REPO)) $(if $(BRANCH),--branch $(BRANCH))

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

bench: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m tools.bench

fuzz: $(READY)
	@$(PY) -m tests.fuzz $(if $(SEED),--seed $(SEED))

colab: $(READY)
	@$(PY) -m tests.colab $(NB)

kills: $(READY)
	@$(PY) -m tests.kills

times: $(READY)
	@$(PY) -m tools.times $(NB)

tables: $(READY)
	@$(PY) -c 'import sys; from qhelpers.experiments.tables import main; main(sys.argv[1:])' $(TABLE)

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find qhelpers tests tools notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

.PHONY: help setup run test test-matrix lab refresh badges lint bench fuzz colab kills times tables clean
