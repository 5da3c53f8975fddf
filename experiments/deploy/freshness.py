"""How fresh is what is served: stamps from a sample's arrival to the first possible answer.

    python -m experiments.deploy.freshness                 MNIST, about 2 minutes
    python -m experiments.deploy.freshness --dataset digits --samples 1000

LeNet5, a stream paced at 400 samples a second, trigger 8, two NumPy replicas in processes of
their own. Expected, from a full trigger to applied, 99th percentile: under 50 ms on a folder,
under 25 ms on Redis. What samples wait for their trigger to fill is reported apart. A third run has
`cdl-jax serve` and a client instead of the replicas, and stamps each version's first answer.
"""

import contextlib
import dataclasses
import http.client
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tyro

from experiments.deploy.broker import Broker
from experiments.runs import conditions, save

PACE, TRIGGER = 400, 8
REQUESTS = 200  # a second
IMAGE = bytes(28 * 28)


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
    rows = {store: measure(options, store) for store in (*options.stores, "served")}
    result = {
        **conditions(f"python -m experiments.deploy.freshness --dataset {options.dataset}"),
        "pace": PACE,
        "trigger": TRIGGER,
        "requests a second, served": REQUESTS,
        "stores, ms": rows,
    }
    save(options.out, "freshness.json", result)
    return 0


def measure(options: Options, store: str) -> dict[str, Any]:
    """One row: a log on a store, or on a folder with a server that follows it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cdl_jax-freshness-"))
    broker = Broker(folder / "broker", durable=False) if store == "redis" else None
    url = broker.url() if broker else str(folder / "log")
    (folder / "log").mkdir()
    try:
        train(options, folder, url, TRIGGER)  # a log to start on: what follows is in its stride
        with answering(folder, url) if store == "served" else following(folder, url):
            train(options, folder, url, TRIGGER + options.samples)
            time.sleep(1.0)
        return table(folder)
    finally:
        if broker:
            broker.kill()
        shutil.rmtree(folder)


def train(options: Options, folder: pathlib.Path, url: str, limit: int) -> None:
    """A trainer, from where an earlier one stopped to this place of its stream."""
    words = ["train", "--dataset", options.dataset, "--log", url, "--run", str(folder / "trainer")]
    words += ["--pace", str(PACE), "--trigger", str(TRIGGER), "--density", "0.001"]
    words += ["--limit", str(limit), "--epochs", "1", "--digest-every", "0"]
    if status := _start(*words).wait():
        raise SystemExit(f"the trainer ended with {status}")


@contextlib.contextmanager
def following(folder: pathlib.Path, url: str) -> Iterator[None]:
    """Two replicas, each in a process of its own."""
    words = ["replica", "--log", url, "--verify-every", "0", "--wait", "300", "--run"]
    followers = [_start(*words, str(folder / f"replica-{i}")) for i in range(2)]
    try:
        yield
    finally:
        for follower in followers:
            follower.send_signal(signal.SIGTERM)
            follower.wait()


@contextlib.contextmanager
def answering(folder: pathlib.Path, url: str) -> Iterator[None]:
    """A server that answers, and a client that stamps the first answer of each version."""
    words = ["serve", "--log", url, "--port", "0", "--wait", "300"]
    server, done = _start(*words, stdout=subprocess.PIPE), threading.Event()
    answers = folder / "answers.jsonl"
    client = threading.Thread(target=_ask, args=(server, answers, done))
    client.start()
    try:
        while client.is_alive() and not (answers.exists() and answers.stat().st_size):
            time.sleep(0.1)
        yield
    finally:
        done.set()
        server.send_signal(signal.SIGTERM)
        server.wait()
        client.join()


def _ask(server: "subprocess.Popen[bytes]", out: pathlib.Path, done: threading.Event) -> None:
    assert server.stdout
    port = int(server.stdout.readline().split(b":")[-1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers, newest = {"content-type": "application/octet-stream"}, -1
    with out.open("w") as file:
        while not done.wait(1 / REQUESTS):
            connection.request("POST", "/predict", IMAGE, headers)
            answer = connection.getresponse()
            answer.read()
            version, at = int(answer.headers["x-model-version"]), time.time()
            if version > newest:
                newest = version
                file.write(json.dumps({"version": version, "answered_at": at}) + "\n")
                file.flush()


def table(folder: pathlib.Path) -> dict[str, Any]:
    """Medians and 99th percentiles of each stretch of the way."""
    lines = _lines(folder / "trainer" / "metrics.jsonl")
    made = {x["version"]: x for x in lines if x["version"] > 1}  # the first was there before
    stretches: dict[str, list[float]] = {
        "first sample arrived to trigger full": [
            x["full_at"] - x["first_at"] for x in made.values()
        ],
        "trigger full to step done": [x["made_at"] - x["full_at"] for x in made.values()],
        "step done to acknowledged": [x["acknowledged_at"] - x["made_at"] for x in made.values()],
    }
    for name, stamp in (("applied", "served_at"), ("first answer", "answered_at")):
        lines = [x for path in folder.rglob("*.jsonl") for x in _lines(path) if stamp in x]
        pairs = [(made[x["version"]], x[stamp]) for x in lines if x["version"] in made]
        if pairs:
            stretches[f"acknowledged to {name}"] = [at - x["acknowledged_at"] for x, at in pairs]
            stretches[f"trigger full to {name}"] = [at - x["full_at"] for x, at in pairs]
    return {"versions": len(made)} | {
        name: {
            "median": round(1e3 * float(np.median(seconds)), 2),
            "p99": round(1e3 * float(np.percentile(seconds, 99)), 2),
            "of": len(seconds),
        }
        for name, seconds in stretches.items()
    }


def _start(*words: str, stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "cdl_jax.cli", *words]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
