# Each target starts from a bare checkout: it makes .venv, installs, runs.
PYTHON ?= python3
VENV ?= .venv
DATASET ?= digits
BIN = $(VENV)/bin
READY = $(VENV)/.ready

PROFILE ?= full
.PHONY: demo test lint bench faults deploy-bench mnist cifar10 experiments report figure \
	example-stream training-time update-bytes mnist-digests mnist-values fuzz resume-faults clean

$(READY): pyproject.toml CMakeLists.txt $(wildcard cdl_jax/native/*.cc cdl_jax/native/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev]'
	touch $@

demo: $(READY)
	$(BIN)/python -m experiments.demo --dataset $(DATASET)

$(VENV)/.example: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,example]'
	touch $@

example-stream: $(VENV)/.example
	$(BIN)/python -m experiments.example_stream

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
	$(BIN)/python -m experiments.deploy.catch_up
	$(BIN)/python -m experiments.deploy.fan_out

# Runs what has no result yet, goes on where it was stopped; PROFILE=quick for a small form.
mnist: $(READY)
	$(BIN)/python -m experiments.grid --dataset mnist --profile $(PROFILE) $(GRID)

cifar10: $(READY)
	$(BIN)/python -m experiments.grid --dataset cifar10 --profile $(PROFILE) $(GRID)

.PHONY: drift overhead checkpoint-cost
# MNIST streams that change, by how the trainer draws and answers; then its table.
drift: $(READY)
	$(BIN)/python -m experiments.grid --dataset mnist --profile drift $(GRID)
	$(BIN)/python -m experiments.report --only drift

experiments: mnist cifar10 report

report: $(READY)
	$(BIN)/python -m experiments.report

# One figure or table: make figure NAME=accuracy_bytes
figure: $(READY)
	$(BIN)/python -m experiments.report --only $(NAME)

training-time: $(READY)
	$(BIN)/python -m experiments.training_time

update-bytes: $(READY)
	$(BIN)/python -m experiments.update_bytes

overhead: $(READY)
	$(BIN)/python -m experiments.overhead

checkpoint-cost: $(READY)
	$(BIN)/python -m experiments.checkpoint_cost

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
