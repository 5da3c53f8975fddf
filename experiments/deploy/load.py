"""What a client notices of 20 updates a second, applied to the ResNet18 that answers it.

    python -m experiments.deploy.load                      20 rounds, about 20 minutes
    python -m experiments.deploy.load --rounds 3 --requests 100

Two servers, one after the other: `cdl-jax serve`'s own, and the same with every version loaded as
a whole model. In each round the client sends three blocks of requests, one sample each, one after
the other, in random order: with updates, without, without. Updates come from a recorded log; a
third process appends them. The ratio of the pooled 99th percentiles has a bootstrap interval over
the rounds; the two blocks without updates show what the ratio is where nothing happens.

Expected for sparse updates: no failed request, the interval's lower end at most 1.10, the ratio
of medians at most 1.05.
"""

import dataclasses
import http.client
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from typing import Any, Literal

import numpy as np
import tyro

from cdl_jax.deploy import Replica, UpdateLog, open_log
from cdl_jax.deploy.follow import open_first
from cdl_jax.deploy.replica import model_factory
from cdl_jax.deploy.serve import ServeConfig, application, listening, server_of
from cdl_jax.wire import decode_snapshot
from experiments.deploy import recorded
from experiments.runs import conditions, save

BLOCKS = ("updates", "quiet", "quiet again")
SLOWEST = 0.04  # seconds a request, for the number of updates to record


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings."""

    rounds: int = 20
    """Rounds of three blocks."""
    requests: int = 500
    """Requests in a block."""
    rate: float = 20.0
    """Updates a second, in blocks with updates."""
    density: float = 0.001
    """Share of entries in an update."""
    seed: int = 0
    """Of the order of blocks, the inputs, the bootstrap."""
    out: str = "experiments/results"
    """Folder for load.json."""
    serve: Literal["sparse", "whole"] | None = None
    """For the server's own process."""
    log: str = ""
    """For the server's own process."""


class WholeModel(Replica):
    """A replica that loads a whole model for each version, as servers do that know no updates.

    The model is one of the same size each time; what came while it loaded is passed over.
    """

    def __init__(self, log: UpdateLog, make_model: Any):
        super().__init__(log, make_model)
        self._whole = log.read_snapshot(0)

    def apply(self, blob: bytes) -> None:
        """Decodes a model into the spare buffer, checksum and all, and swaps."""
        version = self.version + 1
        while self._log.read(version + 1) is not None:
            version += 1
        snapshot = dataclasses.replace(decode_snapshot(self._whole), version=version)
        self._serve(self._buffers.load(snapshot))


class Feeder:
    """Appends recorded updates to a log at a rate, while it is told to; a process of its own."""

    def __init__(self, folder: str, made: recorded.Recorded, rate: float):
        context = multiprocessing.get_context("spawn")
        self.on, self._stop, self._begun = (context.Event() for _ in range(3))
        signals = self.on, self._stop, self._begun
        self._process = context.Process(target=feed, args=(folder, made, rate, *signals))
        self._process.start()
        self._begun.wait()

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        self._process.join()
        if self._process.exitcode:
            raise SystemExit("the recorded updates came to their end: requests took too long")


def feed(
    folder: str, made: recorded.Recorded, rate: float, on: Event, stop: Event, begun: Event
) -> None:
    """The feeder's process."""
    log = open_log(folder, create=True)
    with log.claim() as owner:
        recorded.begin(log, owner, made)
        begun.set()
        due, waiting = time.monotonic(), enumerate(made.updates, 1)
        while not stop.is_set():
            if not on.wait(0.05):
                due = time.monotonic()
                continue
            if (update := next(waiting, None)) is None:
                sys.exit(1)
            log.append(*update, owner)
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))


def main(options: Options) -> int:
    """The client; or a server, where `serve` says so."""
    if options.serve:
        return serve(options)
    updates = int(options.rate * options.rounds * options.requests * SLOWEST) + 200
    made = recorded.resnet18(updates, options.density)
    table = {kind: measure(options, made, kind) for kind in ("sparse", "whole")}
    result = {
        **conditions(f"python -m experiments.deploy.load --rounds {options.rounds}"),
        "rounds": options.rounds,
        "requests a block": options.requests,
        "bytes an update": len(made.updates[0]),
        "servers": table,
    }
    save(options.out, "load.json", result)
    return 1 if table["sparse"]["failed requests"] else 0


def serve(options: Options) -> int:
    """A server's process."""
    config = ServeConfig(log=options.log, port=0).checked()
    log = open_first(options.log, 30)
    kind = Replica if options.serve == "sparse" else WholeModel
    replica = kind(log, model_factory("jax"))
    with listening("127.0.0.1", 0) as sock, application(config, log, replica, None) as app:
        print(sock.getsockname()[1], flush=True)
        server_of(app, config).run(sockets=[sock])
    return 0


def measure(options: Options, made: recorded.Recorded, kind: str) -> dict[str, Any]:
    """A server's rows of the table."""
    folder = tempfile.mkdtemp(prefix="cdl_jax-load-")
    feeder = Feeder(folder, made, options.rate)
    command = [sys.executable, "-m", "experiments.deploy.load", "--serve", kind]
    server = subprocess.Popen([*command, "--log", folder], stdout=subprocess.PIPE)
    try:
        assert server.stdout
        client = Client(int(server.stdout.readline()), options.seed)
        client.block(max(50, options.requests // 4))  # warms up
        return play(options, client, feeder)
    finally:
        feeder.close()
        server.kill()
        server.communicate()
        shutil.rmtree(folder)


class Client:
    """One connection, one request after the other."""

    def __init__(self, port: int, seed: int):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._inputs = np.random.default_rng(seed).integers(0, 256, 3072, np.uint8).tobytes()
        self.failed, self.version = 0, 0

    def block(self, requests: int) -> np.ndarray:
        """Seconds that each request took."""
        return np.array([self._ask() for _ in range(requests)])

    def _ask(self) -> float:
        begun = time.perf_counter()
        headers = {"content-type": "application/octet-stream"}
        self._connection.request("POST", "/predict", self._inputs, headers)
        answer = self._connection.getresponse()
        body = answer.read()
        self.failed += answer.status != 200 or len(body) != 40
        self.version = int(answer.headers["x-model-version"])
        return time.perf_counter() - begun


def play(options: Options, client: Client, feeder: Feeder) -> dict[str, Any]:
    """All rounds; the server's rows."""
    rng = random.Random(options.seed)
    times: dict[str, list[np.ndarray]] = {name: [] for name in BLOCKS}
    applied, busy = 0, 0.0
    for _ in range(options.rounds):
        for name in rng.sample(BLOCKS, len(BLOCKS)):
            begun, before = time.monotonic(), client.version
            if name == "updates":
                feeder.on.set()
            times[name].append(client.block(options.requests))
            if name == "updates":
                feeder.on.clear()
                applied += client.version - before
                busy += time.monotonic() - begun
            time.sleep(0.2)
    return {
        "failed requests": client.failed,
        "versions applied a second": round(applied / busy, 1),
        **{f"{name}, ms": _summary(np.concatenate(blocks)) for name, blocks in times.items()},
        "with updates / without": _ratios(times["updates"], times["quiet"], options.seed),
        "without / without": _ratios(times["quiet again"], times["quiet"], options.seed),
    }


def _summary(times: np.ndarray) -> dict[str, float]:
    at = {"median": 50, "p99": 99, "most": 100}
    return {name: round(1e3 * float(np.percentile(times, q)), 2) for name, q in at.items()}


def _ratios(above: list[np.ndarray], below: list[np.ndarray], seed: int) -> dict[str, Any]:
    """Of medians, and of pooled 99th percentiles with a 95% interval over resampled rounds."""
    rng, many = np.random.default_rng(seed), []
    for _ in range(1000):
        rounds = rng.integers(0, len(above), len(above))
        parts = [np.concatenate([x[i] for i in rounds]) for x in (above, below)]
        many.append(np.percentile(parts[0], 99) / np.percentile(parts[1], 99))
    one, other = np.concatenate(above), np.concatenate(below)
    return {
        "medians": round(float(np.median(one) / np.median(other)), 3),
        "p99": round(float(np.percentile(one, 99) / np.percentile(other, 99)), 3),
        "p99, 95%": [round(float(np.percentile(many, q)), 3) for q in (2.5, 97.5)],
    }


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
