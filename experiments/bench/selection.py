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
import importlib.metadata
import json
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import select as xla
from cdl_jax.native import available
from cdl_jax.native import select as native
from cdl_jax.native.finite import all_finite

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


def select_columns(update: jax.Array, k: int) -> dict[str, Callable[[], object]]:
    """What is measured for one size and density, by name."""
    magnitudes = np.abs(np.asarray(update))
    columns: dict[str, Callable[[], object]] = {"add": carried(lambda u, r: (u + r,), update)}
    if available():
        columns["native"] = carried(selection(native.error_feedback_top_k, k), update)
    columns |= {
        "xla": carried(selection(xla.xla_top_k, k), update),
        "top_k": applied(lambda x: jax.lax.top_k(jnp.abs(x), k), update),
        "partition": lambda: np.partition(magnitudes, magnitudes.size - k),
    }
    return columns


def finite_columns(x: jax.Array) -> dict[str, Callable[[], object]]:
    """The checks that every entry is finite, by name."""
    columns: dict[str, Callable[[], object]] = {"add": carried(lambda u, r: (u + r,), x)}
    if available():
        columns["native"] = applied(lambda x: all_finite([x]), x)
    columns["isfinite"] = applied(lambda x: jnp.isfinite(x).all(), x)
    columns["vdot"] = applied(lambda x: jnp.vdot(x, 0 * x) == 0, x)
    return columns


def interleave(columns: dict[str, Callable], reps: int, n: int) -> dict[str, np.ndarray]:
    """Milliseconds of each column, taken in turn after two warm-ups; NaN where left out."""
    slow = {"xla", "top_k", "partition"} if n > SLOW_ABOVE else set()
    times = {name: np.full(reps + 2, np.nan) for name in columns}
    for repetition in range(reps + 2):
        for name, run in columns.items():
            if name in slow and repetition >= 5:
                continue
            start = time.perf_counter()
            run()
            times[name][repetition] = 1e3 * (time.perf_counter() - start)
    return {name: values[2:] for name, values in times.items()}


def summary(times: dict[str, np.ndarray]) -> dict[str, object]:
    """Quartiles, and medians of the ratios to `add` round by round."""
    return {
        "ms": {
            name: [round(float(q), 3) for q in np.nanpercentile(values, [25, 50, 75])]
            for name, values in times.items()
        },
        "ratio": {
            name: round(float(np.nanmedian(values / times["add"])), 2)
            for name, values in times.items()
        },
    }


def environment() -> dict[str, object]:
    """Versions and the machine."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": f"{len(models)} x {models[0]}" if models else platform.processor(),
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
            times = interleave(select_columns(update, k), arguments.reps, n)
            row = {"n": n, "density": density, "k": k, "reps": arguments.reps}
            print(json.dumps(row | summary(times) | environment()), flush=True)
        if arguments.finite:
            times = interleave(finite_columns(update), arguments.reps, n)
            row = {"n": n, "check": "finite", "reps": arguments.reps}
            print(json.dumps(row | summary(times) | environment()), flush=True)


if __name__ == "__main__":
    main()
