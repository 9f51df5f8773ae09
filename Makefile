# Each target makes .venv from requirements.lock, installs what it needs (once), and runs.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: demo test test-long check bench gpu docs install lock audit

demo: .venv/has-demo
	$(BIN)/frugal train dqn LunarLander-v3 --actors int8 --out runs/demo --force

install: .venv/has-install
test: .venv/has-dev
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal
test-long: .venv/has-long
	$(BIN)/pytest -m long
check: .venv/has-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest tests/test_walk.py
bench: .venv/has-install
	$(BIN)/frugal bench
docs: .venv/has-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# a learner on an NVIDIA GPU and actors on the processor; the study stops after an hour, and goes on when asked again
gpu: .venv/has-gpu
	$(BIN)/pytest -m gpu
	$(BIN)/python -m benchmarks.studies accerl --env 'HalfCheetah-v5 1024x3' 'HalfCheetah-v5 2048x3, 2 environments' --minutes 60 \
	  --folder runs/study-accerl-gpu --out benchmarks/results/study_accerl_gpu.jsonl

# An extra of pyproject.toml for each stamp; pip is asked again only when one of the two files has changed.
EXTRAS_demo := box2d
EXTRAS_install := box2d,mujoco,minatar,atari,dmc,engines
EXTRAS_dev := dev
EXTRAS_long := dev,ray
EXTRAS_docs := docs
EXTRAS_gpu := dev,cuda
.venv/has-%: pyproject.toml requirements.lock
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[$(EXTRAS_$*)]'
	@touch $@

audit:  # what is known to be wrong with the locked versions; asks PyPI
	@test -x .venv/audit/bin/pip || $(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	.venv/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip

lock:  # after a change of dependencies; needs uv
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --output-file requirements.lock
