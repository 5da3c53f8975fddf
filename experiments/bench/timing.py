"""How the benchmarks take times: columns in turn in one process, beside the memory floor."""

import importlib.metadata
import pathlib
import platform
import time
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runs import code

FEW = 3  # rounds of a slow column

Columns = Mapping[str, Callable[[], object]]


def interleave(
    columns: Columns,
    reps: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = 0.0,
    slow: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Milliseconds of each round of each column, taken in turn after two warm-ups.

    A pause (seconds) before each lets the last one's threads fall asleep. Slow columns run in
    `FEW` rounds and have NaN in the others.
    """
    times = {name: np.full(reps, np.nan) for name in columns}
    for turn in range(-2, reps):
        for name, run in columns.items():
            if name in slow and turn >= FEW:
                continue
            time.sleep(pause)
            start = clock()
            run()
            if turn >= 0:
                times[name][turn] = 1e3 * (clock() - start)
    return times


def quartiles(times: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Quartiles of each column."""
    return {
        name: [round(float(q), 3) for q in np.nanpercentile(values, [25, 50, 75])]
        for name, values in times.items()
    }


def rounds(times: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Rounds of each column."""
    return {name: int(np.isfinite(values).sum()) for name, values in times.items()}


def median_interval(values: np.ndarray | list[float]) -> list[float]:
    """The median, and the ends of its bootstrap 95% interval."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return [round(float(x), 4) for x in (np.median(values), low, high)]


def add(entries: int) -> Callable[[], None]:
    """A function that adds an array of so many float32 to another, in place: the memory floor."""
    update, residual = jnp.ones(entries), jnp.zeros(entries)
    compiled = jax.jit(lambda u, r: u + r, donate_argnums=1)

    def run() -> None:
        nonlocal residual
        residual = jax.block_until_ready(compiled(update, residual))

    return run


def environment() -> dict[str, object]:
    """Versions, the machine, the code and the day."""
    names = ("jax", "jaxlib", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": _device(),
        **code(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _device() -> str:
    if jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()
