"""What a sparse step does beyond a dense one, in passes over the parameters, without the noise.

    python -m experiments.bench.extra --model resnet18

A step of a large model varies by more than its sparse part takes. So here both steps are given
their gradients and new BatchNorm statistics, two of each in turn, where the model would compute
them: what is left is AMSGrad and, of the sparse one, all that `cdl_jax.make_step` does to feed a
log: non-finite steps skipped, error feedback, selection, digest, the update, the deployed
statistics. Jitted, donated, taken in turn in one process. `add` is r = u + r over as many float32
as the model has parameters: three passes, the memory floor.

Prints one line of JSON: quartiles in milliseconds; by density the median of sparse - dense round
by round, and of that difference in passes (a third of `add`) behind the 0.3 ms that are allowed,
each with its bootstrap 95% interval. Target: 4 passes.
"""

import argparse
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cdl_jax
from cdl_jax.models import classifier, create_model
from experiments.bench.sparse_step import DENSITIES, REPS
from experiments.bench.steps import make_batch, parameters
from experiments.bench.timing import add, environment, interleave, median_interval, quartiles

Given = dict[str, Any]
# glibc gives the kernel nothing back; read as a process starts.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "MALLOC_TOP_PAD_": str(1 << 28)}  # fmt: skip
# A thread's own arena keeps no more than this, so what passes it is from the kernel at every step,
# but on the single arena of a process all threads' small allocations wait for each other.
ARENA = 1 << 26


@jax.custom_vjp
def _with_gradients(params: Any, gradients: Any) -> jax.Array:
    del params, gradients
    return jnp.zeros(())


_with_gradients.defvjp(
    lambda params, gradients: (jnp.zeros(()), gradients),
    lambda gradients, _: (gradients, None),
)


def given(params: Any, model_state: Any, batch: Given, key: Any) -> tuple[jax.Array, Any]:
    """A loss whose gradients and model state are the batch's."""
    del model_state, key
    return _with_gradients(params, batch["gradients"]), (batch["model_state"], {})


def begin(model: str) -> tuple[Any, Any, list[Given]]:
    """Parameters, model state, and two batches of what would be computed from samples."""
    init_fn = classifier(create_model(model)).init_fn
    params, model_state = jax.jit(init_fn)(jax.random.key(0), make_batch(model, 1)[0])
    rng = np.random.default_rng(0)

    def like(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype) * 1e-2, tree)

    batches = [{"gradients": like(params), "model_state": like(model_state)} for _ in range(2)]
    return params, model_state, batches


def dense(model: str) -> Callable[[], None]:
    """A function that takes the bare optax step."""
    params, model_state, batches = begin(model)
    tx = optax.amsgrad(1e-3)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: Given) -> Any:
        params, model_state, opt_state = state
        grads, (model_state, _) = jax.grad(given, has_aux=True)(params, model_state, batch, None)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state

    state, turns = (params, model_state, jax.jit(tx.init)(params)), itertools.cycle(batches)

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, next(turns)))

    return run


def sparse(model: str, density: float, scope: Any) -> Callable[[], None]:
    """A function that takes the step that feeds a log."""
    params, model_state, batches = begin(model)
    tx = optax.chain(optax.amsgrad(1e-3), cdl_jax.sparsify_top_k(density, scope=scope))
    step, turns = cdl_jax.make_step(given, tx), itertools.cycle(batches)
    state = cdl_jax.init_state(params, tx, model_state=model_state)

    def run() -> None:
        nonlocal state
        state, info = step(state, None, next(turns))
        jax.block_until_ready((state, info))

    return run


def kept(models: list[str]) -> dict[str, str]:
    """The settings of a process that measures these: one arena where an update passes the limit."""
    large = max(4 * parameters(model) for model in models) > ARENA
    return KEPT | ({"MALLOC_ARENA_MAX": "1"} if large else {})


def measure(model: str, reps: int, scope: str) -> dict[str, Any]:
    """The row that is printed."""
    entries = parameters(model)
    columns = {"dense": dense(model), "add": add(entries)}
    columns |= {f"{d:g}": sparse(model, d, scope) for d in DENSITIES}
    times = interleave(columns, reps)
    a_pass = np.median(times["add"]) / 3
    row: dict[str, Any] = {"model": model, "parameters": entries, "scope": scope, "reps": reps}
    row["ms"] = quartiles(times)
    for name in map("{:g}".format, DENSITIES):
        extra = times[name] - times["dense"]
        row[name] = {
            "extra_ms": median_interval(extra),
            "passes_after_0.3_ms": median_interval((extra - 0.3) / a_pass),
        }
    return row | environment()


def main() -> None:
    """Measures the models named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=list(REPS), default=["lenet5", "resnet18"])
    parser.add_argument("--reps", type=int, default=200, help="rounds")
    parser.add_argument("--scope", default="tensor")
    arguments = parser.parse_args()
    settings = kept(arguments.model)
    if not settings.items() <= os.environ.items():
        words = [sys.executable, "-m", "experiments.bench.extra", *sys.argv[1:]]
        os.execve(sys.executable, words, os.environ | settings)
    for model in arguments.model:
        print(json.dumps(measure(model, arguments.reps, arguments.scope)), flush=True)


if __name__ == "__main__":
    main()
