"""What an entropy coder of positions would save over the wire's Rice code.

    python -m experiments.bench.entropy            seconds
    python -m experiments.bench.entropy --real     with real updates, about five minutes

`uniform`: k of n = 25e6 positions at random, one stream; bits an entry of

  wire               this format's stream
  floor              log2 C(n, k) / k
  geometric          the gaps' cost under a geometric distribution of mean n / k - 1, its
                     parameter known: what a perfect coder with that model takes
  range_coder        the same model run through constriction's range coder (`pip install
                     constriction`; left out without it): the high part of each gap, with the low
                     bits as they are; its speed too, in millions of gaps a second on one core

`real`: the updates of `real_updates`, bits an entry of `wire` (the gaps' stream alone), of `floor`
(log2 C(n, k), summed over the tensors), and of gaps whose size class, floor(log2(gap + 1)), is
coded under the mean class of the last 8, with the bits below it as they are:

  context_free       the empirical entropy, the model given away
  context_adaptive   classes counted as they come, from a half each: what a coder could reach

`saved` is the share of the whole update, positions and float32 values, that each would save;
values of `uniform` are like weights, coded by the format.
"""

import argparse
import collections
import importlib
import importlib.metadata
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from cdl_jax.errors import DataError
from cdl_jax.wire import encode_update, values
from cdl_jax.wire.positions import decode, encode
from experiments.bench.wire import DENSITIES, N, floor_bits, interleave
from experiments.runs import conditions, save

CLASSES = 32
REPS = 41


def geometric_bits(gaps: np.ndarray, p: float) -> float:
    """What the gaps cost under a geometric distribution."""
    return -gaps.size * math.log2(p) - int(gaps.sum()) * math.log2(1 - p)


def speeds(columns: dict[str, Any], k: int) -> dict[str, float]:
    """Medians, in millions of gaps a second."""
    times = interleave(columns, REPS)
    return {name: round(k / float(np.median(t)) / 1e6, 1) for name, t in times.items()}


def range_coder(gaps: np.ndarray, p: float) -> tuple[float, dict[str, Any]] | None:
    """Bits that a real coder takes, and its two ways as functions; None where it is missing."""
    try:
        stream: Any = importlib.import_module("constriction").stream
    except ImportError:
        return None
    shift = max(0, int(math.log2(1 / p)) - 6)  # below it a geometric is all but uniform
    high = (gaps >> shift).astype(np.int32)
    weights = (1 - p) ** ((1 << shift) * np.arange(int(high.max()) + 1))
    model = stream.model.Categorical((weights / weights.sum()).astype(np.float32), perfect=False)

    def run() -> np.ndarray:
        coder = stream.queue.RangeEncoder()
        coder.encode(high, model)
        return coder.get_compressed()

    words = run()
    back = stream.queue.RangeDecoder(words).decode(model, high.size)
    assert np.array_equal(back, high)
    ways = {
        "range_coder_encode": run,
        "range_coder_decode": lambda: stream.queue.RangeDecoder(words).decode(model, high.size),
    }
    return 32.0 * words.size + shift * gaps.size, ways


def uniform(density: float) -> dict[str, Any]:
    """Random positions: one line."""
    k = int(N * density)
    rng = np.random.default_rng(0)
    positions = np.sort(rng.choice(N, k, replace=False)).astype(np.int32)
    counts = np.array([k])
    blob = encode(positions, counts, dense=False)
    gaps = np.diff(positions.astype(np.int64), prepend=-1) - 1
    bits = {"wire": 8.0 * len(blob), "floor": floor_bits(N, k)}
    bits["geometric"] = geometric_bits(gaps, k / N)
    ways = {
        "wire_encode": lambda: encode(positions, counts, dense=False),
        "wire_decode": lambda: decode(blob, 0, counts, dense=False),
    }
    found = range_coder(gaps, k / N)
    if found is not None:
        bits["range_coder"], ways = found[0], ways | found[1]
    weights = (0.02 * rng.standard_normal(k)).astype(np.float32)
    whole = bits["wire"] + 8 * len(values.encode(weights, levels=False))
    line = {"kind": "uniform", "n": N, "density": density, "k": k}
    return line | compared(bits, k, whole) | {"million_a_second": speeds(ways, k), "reps": REPS}


def compared(bits: dict[str, float], k: int, whole: float) -> dict[str, Any]:
    """Bits an entry, and what share of the whole update the others save."""
    others = {name: value for name, value in bits.items() if name != "wire"}
    return {
        "bits_an_entry": {name: round(value / k, 4) for name, value in bits.items()},
        "whole_bits_an_entry": round(whole / k, 3),
        "saved": {name: round((bits["wire"] - x) / whole, 5) for name, x in others.items()},
    }


def contexts(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class of each gap, and the mean class of the last 8, in quarters."""
    classes = np.frexp(gaps + 1.0)[1] - 1
    sums = np.concatenate([[0], np.cumsum(classes)])
    last = np.arange(gaps.size)
    first = np.maximum(0, last - 8)
    return classes, np.round(4 * (sums[last] - sums[first]) / np.maximum(1, last - first))


def free_bits(pairs: Iterable[tuple[int, float]]) -> float:
    """The entropy of classes given their contexts, over these very pairs."""
    joint = collections.Counter(pairs)
    alone: collections.Counter[float] = collections.Counter()
    for (_, context), times in joint.items():
        alone[context] += times
    return -sum(times * math.log2(times / alone[c]) for (_, c), times in joint.items())


def adaptive_bits(pairs: Iterable[tuple[int, float]]) -> float:
    """What the classes cost under counts of those before in the same context."""
    counts: dict[float, list[float]] = {}
    bits = 0.0
    for size, context in pairs:
        seen = counts.setdefault(context, [0.5] * CLASSES)
        bits -= math.log2(seen[size] / sum(seen))
        seen[size] += 1
    return bits


def real(name: str, found: Any) -> dict[str, Any]:
    """One update of a real model."""
    update, leaves = found.update, found.spec.leaves
    ks = np.asarray(update.counts).tolist()
    parts = [(o[0], at[:k]) for o, at, k in zip(update.sections, update.indices, ks, strict=True)]
    parts = [(leaf, at) for leaf, at in parts if at.size]
    sizes = np.array([at.size for _, at in parts])
    stream = encode(np.concatenate([at for _, at in parts]), sizes, dense=False)
    gaps = np.concatenate([np.diff(at.astype(np.int64), prepend=-1) - 1 for _, at in parts])
    classes, means = contexts(gaps)
    pairs, below = list(zip(classes.tolist(), means.tolist(), strict=True)), int(classes.sum())
    bits = {
        "wire": 8.0 * len(stream),
        "floor": sum(floor_bits(leaves[i].size, at.size) for i, at in parts),
        "context_free": free_bits(pairs) + below,
        "context_adaptive": adaptive_bits(pairs) + below,
    }
    line = {"kind": "real", "model": name, "density": found.density, "k": gaps.size}
    return line | compared(bits, gaps.size, 8.0 * len(encode_update(update)))


def real_lines(name: str) -> list[dict[str, Any]]:
    """All densities of one model; one line that says so where its data is missing."""
    from experiments.bench.real_updates import real_updates

    try:
        return [real(name, found) for found in real_updates(name, DENSITIES)]
    except DataError as error:
        return [{"kind": "real", "model": name, "left_out": str(error)}]


def coder() -> dict[str, str]:
    """The range coder's version."""
    try:
        return {"constriction": importlib.metadata.version("constriction")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def main() -> None:
    """Writes entropy.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--results", default="experiments/results/bench")
    arguments = parser.parse_args()
    rows = []
    for name in ("lenet5", "resnet18") if arguments.real else ():
        rows += real_lines(name)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [uniform(density) for density in DENSITIES] + rows
    command = "python -m experiments.bench.entropy" + " --real" * arguments.real
    save(arguments.results, "entropy.json", {"rows": rows} | conditions(command) | coder())


if __name__ == "__main__":
    main()
