"""Bytes and speed of the wire format, against the entropy of positions and other codecs.

    python -m experiments.bench.wire            about five minutes on 2 CPU cores

Three kinds of lines of JSON. `uniform`: k of n = 25e6 positions at random; `real`: an update of
LeNet5 on MNIST and ResNet18 on CIFAR-10 (see `real_updates`; left out where the data is missing).
Both give the positions' bytes in times of the floor, log2 C(n, k) summed over the tensors, for

  wire        this format, leaves and counts included
  gaps_zstd   16-bit gaps (65,535 for a further 65,535) under zstandard, level 19
  elias_fano  n, k, low bits and a unary code of the high ones
  pyroaring   a Roaring bitmap, run-optimised, serialised

On a real update each must say which entries of which tensors without asking for the model: the last
three get the wire's bytes for leaves and counts, and the positions of all tensors as one set, each
tensor's behind the last position of the one before. `ratio_sizes_known` is what these three take
for a reader that knows every tensor's size: nothing but one set, positions in the concatenation.

`uniform` adds millions of positions a second, encoded and decoded on one core, medians, the NumPy
form's too; `real` the bytes of the whole signed update, an entry's bits, and what is allowed: 1.01
(floor + 32-bit values) + 160 bytes + one a tensor. `end_to_end` is a ResNet50's update at 1e-3,
encoded and decoded in turn, milliseconds, in NumPy alone too. Targets: uniform 1.01; 200 and 100
million; 5 ms; smaller than the other three on every line.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cdl_jax.core.layout import SparseUpdate, dtype_of
from cdl_jax.errors import DataError
from cdl_jax.wire import decode_update, encode_update
from cdl_jax.wire.codec import Piece, encode_body
from cdl_jax.wire.numbers import numpy_decode_gaps, numpy_encode_gaps, varint
from cdl_jax.wire.positions import decode, encode
from experiments.bench.timing import environment
from experiments.fuzz import in_numpy

N = 25_000_000
DENSITIES = (1e-2, 1e-3, 1e-4)


def floor_bits(n: int, k: int) -> float:
    """log2 C(n, k)."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def gaps_zstd(positions: np.ndarray, n: int) -> bytes:
    """16-bit gaps, a further 65,535 marked by 65,535, compressed."""
    import zstandard  # pyright: ignore[reportMissingImports]

    gaps = np.diff(positions, prepend=-1) - 1
    words = np.full(int((gaps // 65535 + 1).sum()), 65535, "<u2")
    words[np.cumsum(gaps // 65535 + 1) - 1] = gaps % 65535
    return zstandard.ZstdCompressor(level=19).compress(words.tobytes())


def elias_fano(positions: np.ndarray, n: int) -> bytes:
    """Low bits of each position, then the high ones in unary, k + n / 2^low bits."""
    low = max(0, int(math.log2(n / positions.size)))
    shifts = np.arange(low)
    lows = (positions[:, None] >> shifts & 1).astype(np.uint8).reshape(-1)
    highs = np.zeros(positions.size + (n >> low) + 1, np.uint8)
    highs[(positions >> low) + np.arange(positions.size)] = 1
    found = np.flatnonzero(highs) - np.arange(positions.size)
    back = found << low | lows.reshape(-1, low).astype(np.int64) @ (1 << shifts)
    assert np.array_equal(back, positions)
    head = varint(n) + varint(positions.size)
    return head + np.packbits(lows).tobytes() + np.packbits(highs).tobytes()


def pyroaring(positions: np.ndarray, n: int) -> bytes:
    """A serialised Roaring bitmap."""
    import pyroaring as library  # pyright: ignore[reportMissingImports]

    bitmap = library.BitMap(positions.astype(np.uint32))
    bitmap.run_optimize()
    return bitmap.serialize()


OTHERS = {"gaps_zstd": gaps_zstd, "elias_fano": elias_fano, "pyroaring": pyroaring}


def interleave(columns: dict[str, Callable[[], object]], reps: int) -> dict[str, np.ndarray]:
    """Seconds of each column, taken in turn."""
    times = {name: np.zeros(reps) for name in columns}
    for turn in range(reps):
        for name, run in columns.items():
            begun = time.perf_counter()
            run()
            times[name][turn] = time.perf_counter() - begun
    return times


def uniform(density: float, reps: int) -> dict[str, Any]:
    """Random positions: sizes and speeds."""
    k = int(N * density)
    rng = np.random.default_rng(0)
    positions = np.sort(rng.choice(N, k, replace=False)).astype(np.int32)
    counts = np.array([k])
    blob = encode(positions, counts, dense=False)
    times = interleave(
        {
            "encode": lambda: encode(positions, counts, dense=False),
            "decode": lambda: decode(blob, 0, counts, dense=False),
            "encode_numpy": lambda: numpy_encode_gaps(positions, counts),
            "decode_numpy": lambda: numpy_decode_gaps(blob, 0, counts),
        },
        reps,
    )
    floor = floor_bits(N, k) / 8
    wide = positions.astype(np.int64)
    sizes = {"wire": len(blob)} | {name: len(f(wide, N)) for name, f in OTHERS.items()}
    return {
        "kind": "uniform", "n": N, "density": density, "k": k, "floor_bits": 8 * floor / k,
        "ratio": {name: round(size / floor, 4) for name, size in sizes.items()},
        "million_a_second": {
            name: round(k / float(np.median(t)) / 1e6, 1) for name, t in times.items()
        },
        "reps": reps,
    }  # fmt: skip


def real(name: str, found: Any) -> dict[str, Any]:
    """One update of a real model: sizes."""
    from cdl_jax.wire.keys import SigningKey

    update, leaves = found.update, found.spec.leaves
    counts = np.asarray(update.counts).tolist()
    columns = zip(update.sections, update.indices, counts, strict=True)
    parts = [(places[0], at[:k]) for places, at, k in columns if k]
    ks = np.array([at.size for _, at in parts])
    k, floor = int(ks.sum()), sum(floor_bits(leaves[i].size, at.size) for i, at in parts) / 8
    body = encode_body([Piece((i,), at, np.zeros(at.size, bool)) for i, at in parts])
    whole = put_end_to_end(parts, [leaves[i].size for i, _ in parts])
    alone = put_end_to_end(parts, [int(at[-1]) + 1 for _, at in parts])
    # One group: a byte for its values' form, and a byte a value; the rest is leaves and counts.
    own = len(encode(np.concatenate([at for _, at in parts]), ks, dense=False))
    wire = len(body) - k - 1
    sizes = {"wire": wire} | {name: wire - own + len(f(*alone)) for name, f in OTHERS.items()}
    known = {name: len(f(*whole)) for name, f in OTHERS.items()}
    blob = encode_update(update, key=SigningKey.generate())
    values = sum(at.size * dtype_of(leaves[i].dtype).itemsize for i, at in parts)
    return {
        "kind": "real", "model": name, "density": found.density, "k": k,
        "floor_bits": 8 * floor / k,
        "ratio": {name: round(size / floor, 4) for name, size in sizes.items()},
        "ratio_sizes_known": {name: round(size / floor, 4) for name, size in known.items()},
        "update_bytes": len(blob), "bits_an_entry": round(8 * len(blob) / k, 2),
        "allowed_bytes": round(1.01 * (floor + values) + 160 + len(leaves)),
    }  # fmt: skip


def put_end_to_end(parts: list[Any], spans: list[int]) -> tuple[np.ndarray, int]:
    """All positions as one ascending set, and the end of its range.

    Args:
      parts: leaf and positions of each section.
      spans: each section's range.
    """
    ends = np.cumsum(spans)
    moved = [at + (end - span) for (_, at), end, span in zip(parts, ends, spans, strict=True)]
    return np.concatenate(moved).astype(np.int64), int(ends[-1])


def resnet50_update() -> SparseUpdate:
    """Random positions, 1e-3 of each tensor, with values like weights."""
    import jax

    from cdl_jax.core.compress import entries_sent
    from cdl_jax.core.tree import tree_spec
    from cdl_jax.models import classifier, create_model

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    init_fn = classifier(create_model("resnet50")).init_fn
    params, model_state = jax.eval_shape(init_fn, jax.random.key(0), images)
    spec = tree_spec({"params": params, "model_state": model_state})
    rng = np.random.default_rng(0)
    ks = [entries_sent(1e-3, leaf.size) for leaf in spec.leaves]
    return SparseUpdate(
        tuple(
            np.sort(rng.choice(leaf.size, k, replace=False)).astype(np.int32)
            for leaf, k in zip(spec.leaves, ks, strict=True)
        ),
        tuple((0.02 * rng.standard_normal(k)).astype(np.float32) for k in ks),
        np.array(ks, np.int32), np.uint32(0), np.uint32(1), np.zeros(4, np.uint32),
        tuple((i,) for i in range(len(ks))), spec.fingerprint,
    )  # fmt: skip


def both_in_numpy(update: SparseUpdate) -> None:
    """Encodes and decodes as where no native codec was built."""
    with in_numpy():
        decode_update(encode_update(update))


def end_to_end(update: SparseUpdate, reps: int) -> dict[str, Any]:
    """Encoding and decoding, quartiles."""
    blob = encode_update(update)
    times = interleave(
        {
            "encode": lambda: encode_update(update),
            "decode": lambda: decode_update(blob),
            "both_numpy": lambda: both_in_numpy(update),
        },
        reps,
    )
    times["both"] = times["encode"] + times["decode"]
    quartiles = {
        name: [round(1e3 * float(q), 3) for q in np.percentile(t, [25, 50, 75])]
        for name, t in times.items()
    }
    k = int(np.sum(update.counts))
    return {
        "kind": "end_to_end", "model": "resnet50", "density": 1e-3, "k": k,
        "tensors": len(update.indices), "bytes": len(blob), "ms": quartiles, "reps": reps,
    }  # fmt: skip


def main() -> None:
    """Measures all lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["lenet5", "resnet18"])
    parser.add_argument("--reps", type=int, default=41)
    arguments = parser.parse_args()
    rows, update = [], resnet50_update()
    for name in arguments.models:
        from experiments.bench.real_updates import real_updates

        try:
            rows += [real(name, found) for found in real_updates(name, DENSITIES)]
        except DataError as error:
            rows.append({"kind": "real", "model": name, "left_out": str(error)})
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows += [uniform(density, arguments.reps) for density in DENSITIES]
    rows.append(end_to_end(update, arguments.reps))
    for row in rows:
        print(json.dumps(row | environment()), flush=True)


if __name__ == "__main__":
    main()
