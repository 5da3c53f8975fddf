"""How fresh is what is served: stamps from a sample's arrival to the first possible answer.

    python -m experiments.deploy.freshness                 a folder and Redis, MNIST, 1 minute
    python -m experiments.deploy.freshness --dataset digits --samples 1000

LeNet5, a stream paced at 400 samples a second, trigger 8, two NumPy replicas in processes of
their own. Expected, from a full trigger to applied, 99th percentile: under 50 ms on a folder,
under 25 ms on Redis. What samples wait for their trigger to fill is reported apart.
"""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tyro

from experiments.deploy.broker import Broker
from experiments.runs import conditions, save

PACE, TRIGGER = 400, 8


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings."""

    dataset: str = "mnist"
    """mnist, or digits where there is none."""
    samples: int = 8000
    """Of the stream."""
    stores: tuple[str, ...] = ("folder", "redis")
    """Where the log lies."""
    out: str = "experiments/results"
    """Folder for freshness.json."""


def main(options: Options) -> int:
    """Measures and writes the report."""
    rows = {}
    for store in options.stores:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="cdl_jax-freshness-"))
        broker = Broker(folder / "broker", durable=False) if store == "redis" else None
        try:
            rows[store] = run(options, folder, broker.url() if broker else str(folder / "log"))
        finally:
            if broker:
                broker.kill()
            shutil.rmtree(folder)
    result = {
        **conditions(f"python -m experiments.deploy.freshness --dataset {options.dataset}"),
        "pace": PACE,
        "trigger": TRIGGER,
        "stores, ms": rows,
    }
    save(options.out, "freshness.json", result)
    return 0


def run(options: Options, folder: pathlib.Path, url: str) -> dict[str, Any]:
    """A trainer and two replicas on one log; the row of the table."""
    words = ["train", "--dataset", options.dataset, "--log", url, "--run", str(folder / "trainer")]
    words += ["--pace", str(PACE), "--trigger", str(TRIGGER), "--density", "0.001"]
    words += ["--limit", str(options.samples), "--epochs", "1", "--digest-every", "0"]
    (folder / "log").mkdir()
    follow = ["replica", "--log", url, "--verify-every", "0", "--wait", "300", "--run"]
    followers = [_start(*follow, str(folder / f"replica-{i}")) for i in range(2)]
    trainer = _start(*words)
    if trainer.wait():
        raise SystemExit(f"the trainer ended with {trainer.returncode}")
    time.sleep(1.0)
    for follower in followers:
        follower.send_signal(signal.SIGTERM)
        follower.wait()
    return table(folder)


def table(folder: pathlib.Path) -> dict[str, Any]:
    """Medians and 99th percentiles of each stretch of the way."""
    made = {x["version"]: x for x in _lines(folder / "trainer" / "metrics.jsonl")}
    served = [_lines(folder / f"replica-{i}" / "metrics.jsonl") for i in range(2)]
    stretches: dict[str, list[float]] = {
        "arrival to trigger full, per sample": [i / PACE for i in range(TRIGGER)] * len(made),
        "trigger full to step done": [x["made_at"] - x["full_at"] for x in made.values()],
        "step done to acknowledged": [x["acknowledged_at"] - x["made_at"] for x in made.values()],
    }
    pairs = [(made[line["version"]], line) for lines in served for line in lines]
    stretches["acknowledged to applied"] = [b["served_at"] - a["acknowledged_at"] for a, b in pairs]
    stretches["trigger full to applied"] = [b["served_at"] - a["full_at"] for a, b in pairs]
    out: dict[str, Any] = {"versions": len(made), "served": len(pairs)}
    for name, seconds in stretches.items():
        out[name] = {
            "median": round(1e3 * float(np.median(seconds)), 2),
            "p99": round(1e3 * float(np.percentile(seconds, 99)), 2),
        }
    return out


def _start(*words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "cdl_jax.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
