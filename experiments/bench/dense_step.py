"""The dense train step of one model against PyTorch's, interleaved in one process.

    python -m experiments.bench.dense_step --model resnet18 --reps 15

Forward, backward and Adam with AMSGrad (lr 1e-3) at batch 128, JAX jitted with donated
buffers, PyTorch eager in training mode on two threads. Prints one line of JSON: medians and
quartiles in milliseconds, and the median of the ratios of neighbouring steps. Target ratios
on two CPU cores: ResNet18 0.80, LeNet5 0.95, the others 1.0; the sparse steps (top-k at 1e-3 per
tensor) of ResNet18 and LeNet5 below PyTorch's dense one. `add` is r = u + r over as many float32
as there are parameters. Without PyTorch its columns are left out, and standard error says so.

With --cpu-time both run on one core, and the process's CPU time is taken instead of the clock:
for a machine that is not idle, where PyTorch's threads wait for each other without end.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.bench.steps import jax_step, make_batch, parameters, sparse_step
from experiments.bench.timing import add, environment, interleave, median_interval, quartiles

WITH_SPARSE = ("lenet5", "resnet18")
# OpenMP's threads, under PyTorch, spin on for milliseconds after their work: a core of the next's.
PAUSE = 0.05  # seconds


def torch_step(model: str, images: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """A function that runs one eager PyTorch step."""
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.bench.torch_models import MODELS

    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    net = MODELS[model](10).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, amsgrad=True)
    inputs = torch.tensor(np.moveaxis(images, 3, 1).copy())
    targets = torch.tensor(labels, dtype=torch.int64)

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()

    return run


def measure(model: str, reps: int, batch_size: int, cpu_time: bool) -> dict[str, Any]:
    """The row that is printed."""
    if cpu_time:  # before JAX counts the cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images, labels = make_batch(model, batch_size)
    row: dict[str, Any] = {"model": model, "batch": batch_size, "reps": reps}
    row["clock"] = "cpu, 1 core" if cpu_time else "wall"
    start = time.perf_counter()
    steps = {"jax": jax_step(model, images, labels)}
    row["compile_s"] = round(time.perf_counter() - start, 1)
    if model in WITH_SPARSE:
        batch = jax.device_put({"image": images, "label": labels})
        steps["sparse"] = sparse_step(model, batch, 1e-3, "tensor")
    steps["add"] = add(parameters(model))
    row |= environment()
    if importlib.util.find_spec("torch"):
        steps["torch"] = torch_step(model, images, labels)
        row["versions"]["torch"] = importlib.metadata.version("torch")
    else:
        print("PyTorch is not there: pip install 'cdl_jax[torch]' for its column", file=sys.stderr)
    clock = time.process_time if cpu_time else time.perf_counter
    times = interleave(steps, reps, clock=clock, pause=PAUSE)
    row["ms"] = quartiles(times)
    if "torch" in times:
        own = [name for name in ("jax", "sparse") if name in times]
        row["ratio"] = {name: median_interval(times[name] / times["torch"]) for name in own}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--reps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--cpu-time", action="store_true")
    print(json.dumps(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
