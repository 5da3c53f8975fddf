"""Trainer and replica compared at every version of a whole MNIST run, over every entry.

A trainer process (the paper's settings, density 1e-3) recomputes the full digest at each of the
6,250 versions and writes it down; a replica process does the same on its side. Expected: equal at
every version. About 4 minutes on 2 CPU cores.

    python -m experiments.mnist_digests
    python -m experiments.mnist_digests --limit 1600       200 versions, on an accelerator, say

What ran elsewhere than on a CPU has the backend's name in its file's.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from experiments.demo import read_lines
from experiments.runs import conditions, save


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the comparison."""

    dataset: str = "mnist"
    """Streamed to the trainer: mnist or digits."""
    backend: str = "numpy"
    """Of the replica: numpy or jax."""
    values: str = "float32"
    """How new values are sent: float32, bf16, f16, int8, int4 or int2."""
    limit: int = 50_000
    """Samples of the stream."""
    folder: str = "runs/mnist-digests"
    """Log and metrics; emptied first."""
    results: str = "experiments/results"
    """Folder of the results."""


def main(options: Options) -> int:
    """Compares, writes mnist_digests_BACKEND.json; 0 when all are equal."""
    (result,) = compare(options, [options.backend])
    trained_on = result["device"].split()[0]
    where = "" if trained_on == "cpu" else f"_{trained_on}"
    save(options.results, f"{options.dataset}_digests_{options.backend}{where}.json", result)
    return 0 if result["full_digests_equal"] == -(-options.limit // 8) else 1


def compare(options: Options, backends: Sequence[str]) -> list[dict[str, Any]]:
    """Runs a trainer and a replica of each backend; how many of the digests are equal, for each."""
    folder = pathlib.Path(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    trainer = start(
        "train", f"--dataset={options.dataset}", "--density=0.001", "--digest-every=1",
        f"--values={options.values}", f"--limit={options.limit}",
        f"--log={folder}/log", f"--run={folder}/trainer",
    )  # fmt: skip
    replicas = [
        start(
            "replica", f"--log={folder}/log", f"--backend={backend}", "--verify-every=1",
            f"--until={-(-options.limit // 8)}", f"--run={folder}/{backend}", "--wait=600",
        )
        for backend in backends
    ]  # fmt: skip
    if trainer.wait():  # it has said why
        for replica in replicas:
            replica.kill()
    statuses = [process.wait() for process in (trainer, *replicas)]
    if any(statuses):
        raise SystemExit(1)
    return [row(options, backend, folder) for backend in backends]


def row(options: Options, backend: str, folder: pathlib.Path) -> dict[str, Any]:
    """Trainer and replica compared, from what they wrote down."""
    ours, theirs = (
        {x["version"]: x["full_digest"] for x in read_lines(folder / name / "metrics.jsonl")}
        for name in ("trainer", backend)
    )
    column = "".join(f"{v} {ours[v]}\n" for v in sorted(ours))
    command = f"python -m experiments.mnist_digests --dataset {options.dataset}"
    return {
        "replica": backend,
        "values": options.values,
        "versions_compared": len(ours),
        "full_digests_equal": sum(ours[v] == theirs.get(v) for v in ours),
        "sha256_of_all_lines_version_digest": hashlib.sha256(column.encode()).hexdigest(),
        "every_500th": {v: ours[v] for v in sorted(ours) if v % 500 == 0 or v == len(ours)},
        **conditions(
            f"{command} --backend {backend} --values {options.values} --limit {options.limit}"
        ),
    }


def start(*words: str) -> "subprocess.Popen[bytes]":
    """A cdl-jax command as a process of its own, which leaves an accelerator room for others."""
    command = [sys.executable, "-m", "cdl_jax.cli", *words]
    env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
