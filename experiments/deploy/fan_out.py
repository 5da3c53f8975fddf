"""Many NumPy replicas on one Redis broker, at many versions a second of a large model.

    python -m experiments.deploy.fan_out      50 replicas, 20 versions/s, ResNet18, 0.1%

Expected: no replica is ever more than a few versions behind, in the last quarter as in the first,
and all end at the last one with the same full digest. Ends with 1 where one is more than a second
behind in the last quarter. Needs 6 GB of memory for 50 replicas.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import tyro

from cdl_jax.core import digest as digests
from cdl_jax.deploy import Replica, open_log
from cdl_jax.wire import read_header
from experiments.deploy import recorded
from experiments.deploy.broker import Broker
from experiments.runs import conditions, save


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings."""

    replicas: int = 50
    """Processes that follow."""
    rate: float = 20.0
    """Versions a second."""
    seconds: float = 30.0
    """How long."""
    density: float = 0.001
    """Share of entries in an update."""
    out: str = "experiments/results"
    """Folder for fan_out.json."""


def follow(url: str, last: int, out: str) -> None:
    """A replica process: ends at the last version, and writes down when each was served."""
    log = open_log(url)
    replica, times, begun = Replica(log), [], time.process_time()
    pathlib.Path(out).write_text("ready")
    while replica.version < last:
        replica.wait(0.5)
        if replica.advance():
            times.append((replica.version, time.time()))
    cpu = time.process_time() - begun
    result = {"times": times, "digest": replica.full_digest(), "cpu": cpu}
    pathlib.Path(out).write_text(json.dumps(result))


def main(options: Options) -> int:
    """Runs it; 0 when all kept pace and ended equal."""
    versions = int(options.rate * options.seconds)
    made = recorded.resnet18(versions, options.density)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cdl_jax-fan-out-"))
    broker = Broker(folder / "broker", durable=False)
    try:
        result = run(options, made, versions, folder, broker)
    finally:
        broker.kill()
    save(options.out, "fan_out.json", result)
    keeps_pace = result["most versions behind, by quarters"][-1] <= options.rate
    return 0 if result["digests equal"] and keeps_pace else 1


def run(
    options: Options, made: recorded.Recorded, versions: int, folder: pathlib.Path, broker: Broker
) -> dict[str, Any]:
    """Publishes at the rate while the replicas follow; what came out."""
    log = open_log(broker.url(), create=True)
    with log.claim() as owner:
        recorded.begin(log, owner, made)
        outs = [folder / f"replica-{i}" for i in range(options.replicas)]
        context = multiprocessing.get_context("spawn")
        children = [
            context.Process(target=follow, args=(broker.url(), versions, str(out))) for out in outs
        ]
        for child in children:
            child.start()
        while not all(out.exists() for out in outs):
            time.sleep(0.1)
        begun, sent = time.time(), {}
        for version, blob in enumerate(made.updates, 1):
            time.sleep(max(0.0, begun + version / options.rate - time.time()))
            sent[version] = time.time()
            log.append(version, blob, owner)
        seconds = time.time() - begun
        for child in children:
            child.join()
    ends = [json.loads(out.read_text()) for out in outs]
    wanted = digests.to_hex(read_header(made.updates[-1]).digest)
    behind = [_behind(end["times"], sent) for end in ends]
    delays = sorted(t - sent[v] for end in ends for v, t in end["times"])
    return {
        **conditions(f"python -m experiments.deploy.fan_out --replicas {options.replicas}"),
        "cores": os.cpu_count(),
        "replicas": options.replicas,
        "versions": versions,
        "versions a second": round(versions / seconds, 2),
        "bytes an update": len(made.updates[0]),
        "digests equal": all(end["digest"] == wanted for end in ends),
        "most versions behind": max(max(row) for row in behind),
        "most versions behind, by quarters": [max(column) for column in zip(*behind, strict=True)],
        "written to served, ms": {
            "median": round(1e3 * delays[len(delays) // 2], 2),
            "p99": round(1e3 * delays[int(0.99 * (len(delays) - 1))], 2),
            "most": round(1e3 * delays[-1], 2),
        },
        "CPU ms a version and replica": round(
            1e3 * sum(end["cpu"] for end in ends) / versions / len(ends), 3
        ),
    }


def _behind(times: list[tuple[int, float]], sent: dict[int, float]) -> list[int]:
    """How many versions had been sent beyond one when it was served, at most, in each quarter."""
    newest, most = 0, [0] * 4
    for version, at in times:
        while newest < len(sent) and sent[newest + 1] <= at:
            newest += 1
        quarter = 4 * (version - 1) // len(sent)
        most[quarter] = max(most[quarter], newest - version)
    return most


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
