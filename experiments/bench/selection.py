"""Error feedback with exact top-k selection on a CPU, against the memory floor and others.

    python -m experiments.bench.selection --n 1e7 --reps 15

One line of JSON for each size and density: quartiles in milliseconds of each column, taken in
turn in one process, and the median of the ratios to `add` in the same round.

  add        r = u + r, jitted, r donated: the floor, two reads and a write
  native     the C++ kernel: add, select, compact, write the residual, in place
  xla        the XLA form of the same (cdl_jax.core.select)
  top_k      jax.lax.top_k of |r| alone
  partition  np.partition of |r| alone, which finds the threshold and no indices

Target ratios of `native` at n = 1e7 on two cores: 2.5 at density 1e-4, 4 at 1e-3, 6 at 1e-2.
`--finite` adds lines for the check of gradients: native, jnp.isfinite(x).all(), and the exact
product with zeros, vdot(x, 0 * x) == 0.
"""

import argparse
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import select as xla
from cdl_jax.native import available
from cdl_jax.native import select as native
from cdl_jax.native.finite import all_finite
from experiments.bench.timing import Columns, add, environment, interleave, quartiles, rounds

SLOW_ABOVE = 20_000_000  # entries; above it the slow columns run in three rounds only


def carried(fn: Callable, update: jax.Array) -> Callable[[], None]:
    """A function that feeds the residual of one call, donated, to the next."""
    residual = jnp.zeros_like(update)
    compiled = jax.jit(fn, donate_argnums=1)

    def run() -> None:
        nonlocal residual
        residual = jax.block_until_ready(compiled(update, residual))[-1]

    return run


def selection(form: Callable, k: int) -> Callable:
    """`(update, residual) -> (indices, sent, residual)` by one form."""

    def fn(update: jax.Array, residual: jax.Array) -> tuple[jax.Array, ...]:
        out = form([update], [residual], (k,), global_scope=False)
        return tuple(part[0] for part in out)

    return fn


def applied(fn: Callable, x: jax.Array) -> Callable[[], None]:
    """A function that runs a jitted one and waits for it."""
    compiled = jax.jit(fn)
    return lambda: jax.block_until_ready(compiled(x))


def _native() -> bool:
    """Whether the kernels, which are for the CPU, can be measured here."""
    return jax.default_backend() == "cpu" and available()


def select_columns(update: jax.Array, k: int) -> dict[str, Callable[[], object]]:
    """What is measured for one size and density, by name."""
    magnitudes = np.abs(np.asarray(update))
    columns: dict[str, Callable[[], object]] = {"add": add(update.size)}
    if _native():
        columns["native"] = carried(selection(native.error_feedback_top_k, k), update)
    columns |= {
        "xla": carried(selection(xla.xla_top_k, k), update),
        "top_k": applied(lambda x: jax.lax.top_k(jnp.abs(x), k), update),
        "partition": lambda: np.partition(magnitudes, magnitudes.size - k),
    }
    return columns


def finite_columns(x: jax.Array) -> dict[str, Callable[[], object]]:
    """The checks that every entry is finite, by name."""
    columns: dict[str, Callable[[], object]] = {"add": add(x.size)}
    if _native():
        columns["native"] = applied(lambda x: all_finite([x]), x)
    columns["isfinite"] = applied(lambda x: jnp.isfinite(x).all(), x)
    columns["vdot"] = applied(lambda x: jnp.vdot(x, 0 * x) == 0, x)
    return columns


def summary(columns: Columns, reps: int, n: int) -> dict[str, object]:
    """Quartiles, and medians of the ratios to `add` round by round."""
    slow = {"xla", "top_k", "partition"} if n > SLOW_ABOVE else set()
    times = interleave(columns, reps, slow=slow)
    ratios = {name: values / times["add"] for name, values in times.items()}
    return {
        "rounds": rounds(times),
        "ms": quartiles(times),
        "ratio": {name: round(float(np.nanmedian(x)), 2) for name, x in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=float, nargs="+", default=[1e5, 1e6, 1e7, 1e8])
    parser.add_argument("--density", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2])
    parser.add_argument("--reps", type=int, default=15)
    parser.add_argument("--finite", action="store_true")
    arguments = parser.parse_args()
    for n in map(int, arguments.n):
        update = jax.random.normal(jax.random.key(0), (n,))
        for density in arguments.density:
            k = max(1, int(density * n))
            row = {"n": n, "density": density, "k": k}
            row |= summary(select_columns(update, k), arguments.reps, n)
            print(json.dumps(row | environment()), flush=True)
        if arguments.finite:
            row = {"n": n, "check": "finite"}
            row |= summary(finite_columns(update), arguments.reps, n)
            print(json.dumps(row | environment()), flush=True)


if __name__ == "__main__":
    main()
