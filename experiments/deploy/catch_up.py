"""Starting a replica on a log whose older versions have been trimmed, by how many there were.

    python -m experiments.deploy.catch_up     1,000, 10,000 and 100,000 versions, 4 minutes

Expected: snapshot plus a tail of 100 versions takes the same time whatever was trimmed, both for
a new replica and for one that stood still at version 0.
"""

import dataclasses
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tyro

from cdl_jax.core.layout import LeafSpec, TreeSpec
from cdl_jax.deploy import Replica, Retention, open_log
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.wire import decode_snapshot, decode_update, encode_snapshot
from experiments.deploy import recorded
from experiments.runs import conditions, save

SPEC = TreeSpec((LeafSpec("params/w", (250, 200), "float32"),))
TAIL = 100


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings."""

    trimmed: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Versions before the newest snapshot."""
    repeats: int = 7
    """Of each measurement."""
    out: str = "experiments/results"
    """Folder for catch_up.json."""


def main(options: Options) -> int:
    """Measures; 0 when the longest log takes less than twice the shortest."""
    most = max(options.trimmed) + TAIL
    tensors = {"params/w": np.random.default_rng(0).standard_normal((250, 200)).astype("float32")}
    made = recorded.record(SPEC, tensors, most, 0.001, 0)
    rows = [measure(made, count, options.repeats) for count in options.trimmed]
    result = {
        **conditions("python -m experiments.deploy.catch_up"),
        "versions after the snapshot": TAIL,
        "rows": rows,
    }
    save(options.out, "catch_up.json", result)
    return 0 if rows[-1]["new replica, ms"] < 2 * rows[0]["new replica, ms"] else 1


def measure(made: recorded.Recorded, trimmed: int, repeats: int) -> dict[str, Any]:
    """A row: milliseconds to the log's end for a new replica and for one at version 0."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cdl_jax-catch-up-"))
    log = open_log(str(folder), create=True)
    with log.claim() as owner:
        recorded.begin(log, owner, made)
        behind = [Replica(log) for _ in range(repeats)]
        model = NumpyModel(decode_snapshot(made.snapshot))
        for version, blob in enumerate(made.updates[: trimmed + TAIL], 1):
            log.append(version, blob, owner)
            update = decode_update(blob)
            model.apply(model.plan(update))
            if version == trimmed:
                digest = np.asarray(update.digest)
                start = decode_snapshot(made.snapshot)
                snapshot = dataclasses.replace(
                    start, tensors=model.tensors(), version=version, digest=digest
                )
                log.write_snapshot(version, encode_snapshot(snapshot), owner)
        begun = time.perf_counter()
        log.trim(Retention(versions=1), owner)
        trimming = time.perf_counter() - begun
    fresh = [_timed(lambda: Replica(log), trimmed) for _ in range(repeats)]
    old = [_timed(lambda r=replica: r, trimmed) for replica in behind]
    shutil.rmtree(folder)
    return {
        "trimmed": trimmed,
        "new replica, ms": round(1e3 * statistics.median(fresh), 1),
        "replica at version 0, ms": round(1e3 * statistics.median(old), 1),
        "trimming, s": round(trimming, 2),
    }


def _timed(make: Any, trimmed: int) -> float:
    begun = time.perf_counter()
    replica = make()
    replica.catch_up()
    seconds = time.perf_counter() - begun
    assert replica.version == trimmed + TAIL, replica.version
    replica.full_digest()
    return seconds


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
