"""The sparse train step against the dense one, and what it costs in passes over the parameters.

    python -m experiments.bench.sparse_step --model resnet18

Batch 128, Adam with AMSGrad (lr 1e-3), jitted, donated, taken in turn in one process. `dense` is
the bare optax step (loss, gradients, update, apply); each sparse column is `cdl_jax.make_step` as
it feeds a log: non-finite steps skipped, error feedback, selection, digest, the update, the
deployed BatchNorm statistics. `add` is r = u + r over as many float32 as the model has
parameters: three passes, the memory floor. A pass is a small share of a step, so there are many
rounds, and more of them the shorter the step.

Prints one line of JSON: quartiles in milliseconds; by density the median of sparse / dense round
by round, of their difference, and of that difference in passes (a third of `add`) behind the
0.3 ms that are allowed, each with its bootstrap 95% interval. Targets on two CPU cores: ratios
of 1.10 (LeNet5 1.15), 4 passes.
"""

import argparse
import json
from typing import Any

import jax
import numpy as np

from experiments.bench.steps import jax_step, make_batch, parameters, sparse_step
from experiments.bench.timing import add, environment, interleave, median_interval, quartiles

DENSITIES = (1e-2, 1e-3, 1e-4)
REPS = {"lenet5": 500, "resnet18": 250, "mobilenet_v2": 300, "resnet50": 90, "densenet161": 30}


def measure(model: str, reps: int, batch_size: int, scope: str) -> dict[str, Any]:
    """The row that is printed."""
    images, labels = make_batch(model, batch_size)
    batch = jax.device_put({"image": images, "label": labels})
    entries = parameters(model)
    columns = {"dense": jax_step(model, images, labels), "add": add(entries)}
    columns |= {f"{d:g}": sparse_step(model, batch, d, scope) for d in DENSITIES}
    times = interleave(columns, reps)
    a_pass = np.median(times["add"]) / 3
    row: dict[str, Any] = {"model": model, "parameters": entries, "batch": batch_size}
    row |= {"scope": scope, "reps": reps, "ms": quartiles(times)}
    for name in map("{:g}".format, DENSITIES):
        extra = times[name] - times["dense"]
        row[name] = {
            "ratio": median_interval(times[name] / times["dense"]),
            "extra_ms": median_interval(extra),
            "passes_after_0.3_ms": median_interval((extra - 0.3) / a_pass),
        }
    return row | environment()


def main() -> None:
    """Measures the models named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=list(REPS), default=["lenet5", "resnet18"])
    parser.add_argument("--reps", type=int, help="rounds; by default about three minutes of them")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--scope", default="tensor")
    arguments = parser.parse_args()
    for model in arguments.model:
        reps = arguments.reps or REPS[model]
        print(json.dumps(measure(model, reps, arguments.batch_size, arguments.scope)), flush=True)


if __name__ == "__main__":
    main()
