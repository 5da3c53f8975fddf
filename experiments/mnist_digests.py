"""Trainer and replica compared at every version of a whole MNIST run, over every entry.

A trainer process (the paper's settings, density 1e-3) recomputes the full digest at each of the
6,250 versions and writes it down; a replica process does the same on its side. Expected: equal at
every version. About 4 minutes on 2 CPU cores.

    python -m experiments.mnist_digests
"""

import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import tyro

from experiments.demo import read_lines
from experiments.runs import conditions, save


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the comparison."""

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
    result = compare(options)
    save(options.results, f"mnist_digests_{options.backend}.json", result)
    return 0 if result["full_digests_equal"] == -(-options.limit // 8) else 1


def compare(options: Options) -> dict[str, Any]:
    """Runs both processes; how many of the digests are equal."""
    folder = pathlib.Path(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    versions = -(-options.limit // 8)
    trainer = start(
        "train", "--dataset=mnist", "--density=0.001", "--digest-every=1",
        f"--values={options.values}", f"--limit={options.limit}",
        f"--log={folder}/log", f"--run={folder}/trainer",
    )  # fmt: skip
    replica = start(
        "replica", f"--log={folder}/log", f"--backend={options.backend}", "--verify-every=1",
        f"--until={versions}", f"--run={folder}/replica",
    )  # fmt: skip
    if trainer.wait():  # it has said why
        replica.kill()
    if replica.wait() or trainer.returncode:
        raise SystemExit(1)
    ours = {x["version"]: x["full_digest"] for x in read_lines(folder / "trainer/metrics.jsonl")}
    theirs = {x["version"]: x["full_digest"] for x in read_lines(folder / "replica/metrics.jsonl")}
    equal = sum(ours[v] == theirs.get(v) for v in ours)
    column = "".join(f"{v} {ours[v]}\n" for v in sorted(ours))
    command = f"python -m experiments.mnist_digests --backend {options.backend}"
    return {
        "replica": options.backend,
        "values": options.values,
        "versions_compared": len(ours),
        "full_digests_equal": equal,
        "sha256_of_all_lines_version_digest": hashlib.sha256(column.encode()).hexdigest(),
        "every_500th": {v: ours[v] for v in sorted(ours) if v % 500 == 0 or v == len(ours)},
        **conditions(f"{command} --values {options.values} --limit {options.limit}"),
    }


def start(*words: str) -> "subprocess.Popen[bytes]":
    """A cdl-jax command as a process of its own."""
    command = [sys.executable, "-m", "cdl_jax.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
