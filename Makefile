# Each target starts from a bare checkout: it makes .venv, installs, runs.
PYTHON ?= python3
VENV ?= .venv
DATASET ?= digits
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint bench faults deploy-bench mnist-paired mnist-digests mnist-values fuzz resume-faults clean

$(READY): pyproject.toml CMakeLists.txt $(wildcard cdl_jax/native/*.cc cdl_jax/native/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev]'
	touch $@

demo: $(READY)
	$(BIN)/python -m experiments.demo --dataset $(DATASET)

test: $(READY)
	$(BIN)/python -m pytest -q -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,bench]'
	$(BIN)/python -m experiments.bench

faults: $(READY)
	$(BIN)/python -m experiments.deploy.faults

deploy-bench: $(READY)
	$(BIN)/python -m experiments.deploy.load
	$(BIN)/python -m experiments.deploy.freshness
	$(BIN)/python -m experiments.deploy.fan_out
	$(BIN)/python -m experiments.deploy.catch_up

mnist-paired: $(READY)
	$(BIN)/python -m experiments.mnist_paired

mnist-digests: $(READY)
	$(BIN)/python -m experiments.mnist_digests --backend numpy
	$(BIN)/python -m experiments.mnist_digests --backend jax

mnist-values: $(READY)
	$(BIN)/python -m experiments.mnist_values

fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,fuzz]'
	$(BIN)/python -m experiments.fuzz

resume-faults: $(READY)
	$(BIN)/python -m experiments.resume_faults

clean:
	rm -rf $(VENV) runs build
