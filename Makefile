# The course's commands. Each makes the environment .venv if it is missing or out of date.

PYTHON ?= python3
PY := .venv/bin/python

help:
	@echo 'make lab      JupyterLab on the notebooks'
	@echo 'make run      execute all notebooks, and make a site of them: build/site/index.html'
	@echo 'make test     unit tests, and every output in the notebooks compared (NB=03: one notebook)'
	@echo 'make test-all the same with the slow tests; CI runs it'
	@echo 'make setup    make the environment (TORCH=cpu or TORCH=cuda: with that build of PyTorch)'
	@echo 'make refresh  execute the notebooks in place (NB=03: one)'
	@echo 'make lint     ruff, on code and notebooks'
	@echo 'make badges   write REPO=owner/name BRANCH=main into badges and set-up cells'
	@echo 'make tables   run the long experiments whose results the notebooks show (TABLE=qat: one)'
	@echo 'make times    measure the times of the notebooks, and write them where they stand (NB=03: one)'
	@echo 'make bench    how fast the code is beside plain loops, torch, a naive search: build/bench.md'
	@echo 'make colab    each notebook alone, as on Colab, installed from the last commit (NB=03: one)'
	@echo 'make clean    remove build/ and caches'

# The notebook that NB asks for, or none where NB is not given.
NOTEBOOK = $(if $(NB),$(or $(wildcard notebooks/$(NB)*.ipynb),$(error no notebook's name begins with $(NB))))

setup:
	@$(PYTHON) tools/environment.py $(TORCH)

lab: setup
	@$(PY) -m jupyterlab --notebook-dir=. notebooks/01_math_basics.ipynb

run: setup
	@$(PY) -m tools.notebooks run

test: setup
	@$(PY) -m pytest -m 'not slow' $(NOTEBOOK)

test-all: setup
	@$(PY) -m pytest $(NOTEBOOK)

refresh: setup
	@$(PY) -m tools.notebooks refresh $(NB)

badges: setup
	@$(PY) -m tools.badges $(if $(REPO),--repo $(REPO)) $(if $(BRANCH),--branch $(BRANCH))

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

bench: setup
	@OMP_NUM_THREADS=1 $(PY) -m tools.bench

colab: setup
	@$(PY) -m tools.colab $(NB)

times: setup
	@$(PY) -m tools.times $(NB)

tables: setup
	@$(PY) -c 'import sys; from qhelpers.experiments.tables import main; main(sys.argv[1:])' $(TABLE)

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find qhelpers tests tools notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

.PHONY: help setup lab run test test-all refresh badges lint bench colab times tables clean
