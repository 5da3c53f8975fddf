"""The processes of a run of the fault campaign: a writer, and a replica with a reader beside it.

The writer's model is a function of (seed, version): three small tensors of which every version
changes some entries. So the parent knows the digest that each version must have.
"""

import os
import pathlib
import random
import resource
import signal
import threading
import time
from typing import Any

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import LeafSpec, SparseUpdate, TreeSpec
from cdl_jax.deploy import FailurePolicy, Publisher, Replica, Retention, open_log
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.errors import CdlError, LogError
from cdl_jax.wire import Snapshot

SHAPES = {"params/a/w": ((40, 30), "float32"), "params/b": ((64,), "float16"),
          "params/c": ((2, 500), "float32")}  # fmt: skip
SPEC = TreeSpec(tuple(LeafSpec(name, *SHAPES[name]) for name in sorted(SHAPES)))
JUMPS = (signal.SIGRTMIN, signal.SIGRTMIN + 1)
PATIENCE = 0.4  # seconds without a heartbeat after which a writer counts as dead


class Trainer:
    """Versions of a model that depend on the seed alone."""

    def __init__(self, seed: int):
        self._seed, self.version = seed, 0
        rng = np.random.default_rng(seed)
        tensors = {
            leaf.name: rng.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in SPEC.leaves
        }
        self.digest = digests.numpy_digest(tensors)
        self._model = NumpyModel(Snapshot(SPEC, tensors, 0, bytes(16), self.digest))

    def tree(self) -> Any:
        """The deployed tree at this version."""
        return self._model.tree()

    def step(self) -> SparseUpdate:
        """Makes the next version."""
        rng = np.random.default_rng([self._seed, self.version + 1])
        indices, values = [], []
        for leaf in SPEC.leaves:
            at = np.sort(rng.choice(leaf.size, int(rng.integers(1, 40)), replace=False))
            indices.append(at.astype(np.int32))
            values.append(rng.standard_normal(at.size).astype(leaf.dtype))
        update = SparseUpdate(
            tuple(indices), tuple(values), np.array([at.size for at in indices], np.int32),
            np.uint32(self.version), np.uint32(self.version + 1), np.zeros(4, np.uint32),
            tuple((i,) for i in range(len(indices))), SPEC.fingerprint,
        )  # fmt: skip
        plan = self._model.plan(update)
        update.digest[:] = self._model.write([plan], self.digest)
        self.digest, self.version = update.digest.copy(), self.version + 1
        return update


def write(url: str, seed: int, acks: pathlib.Path, versions: int, keep: Retention) -> None:
    """Publishes all versions; leaves an empty file in `acks` for each that was acknowledged.

    SIGUSR1 makes the disk full, SIGUSR2 empties it: no file may grow past 100 bytes. `JUMPS` move
    the clock by which versions are stamped and grow old.
    """
    jump_clock()
    limit = resource.RLIMIT_FSIZE
    hard = resource.getrlimit(limit)[1]
    signal.signal(signal.SIGUSR1, lambda *_: resource.setrlimit(limit, (100, hard)))
    signal.signal(signal.SIGUSR2, lambda *_: resource.setrlimit(limit, (hard, hard)))
    pause = random.Random(seed).choice([0.0, 0.002, 0.005])
    trainer, log = Trainer(seed), open_log(url, create=True)
    with log.claim(patience=PATIENCE) as owner:
        publisher = Publisher.begin(
            log, owner, trainer.tree(), config={"seed": seed}, snapshot_every=7,
            retention=keep,
            on_failure=FailurePolicy(on_failure="wait", patience=10.0),
        )  # fmt: skip
        for version in range(1, versions + 1):
            update = trainer.step()
            last = version == versions
            due = publisher.snapshot_due(version) or last
            publisher.publish(update, trainer.tree() if due else None)
            (acks / str(version)).touch()
            time.sleep(pause)


class FaultyReads:
    """A log whose answers are sometimes torn, damaged, repeated, reordered, lost or late."""

    def __init__(self, log: Any, rng: random.Random, rate: float, counts: dict[str, int]):
        self._log, self._rng, self._rate, self._counts = log, rng, rate, counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, version: int) -> bytes | None:
        """A version's update, or something else."""
        blob = self._log.read(version)
        if blob is None or self._rng.random() >= self._rate:
            return blob
        kind = self._rng.choice(["torn", "damaged", "repeated", "reordered", "lost", "late"])
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return getattr(self, f"_{kind}")(version, blob)

    def _torn(self, version: int, blob: bytes) -> bytes:
        return blob[: self._rng.randrange(len(blob))]

    def _damaged(self, version: int, blob: bytes) -> bytes:
        out = bytearray(blob)
        out[self._rng.randrange(len(out))] ^= 1 << self._rng.randrange(8)
        return bytes(out)

    def _repeated(self, version: int, blob: bytes) -> bytes | None:
        return self._log.read(version - 1) or blob

    def _reordered(self, version: int, blob: bytes) -> bytes | None:
        return self._log.read(version + 1) or blob

    def _lost(self, version: int, blob: bytes) -> None:
        return None

    def _late(self, version: int, blob: bytes) -> bytes:
        time.sleep(self._rng.random() * 0.03)
        return blob


def follow(url: str, seed: int, out: pathlib.Path, versions: int, rate: float) -> None:
    """Follows to the last version; writes down what was served, by its full digest, and faults.

    `JUMPS` move its clock.
    """
    jump_clock()
    rng, counts = random.Random(seed), {}
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    replica = first_replica(FaultyReads(open_first(url), rng, rate, counts))
    done = threading.Event()
    reader = threading.Thread(target=read, args=(replica, file, done))
    reader.start()
    while replica.version < versions:
        try:
            if replica.advance() is None:
                time.sleep(0.002)
            replica.full_digest()
        except LogError:  # refused, or the store fails
            time.sleep(0.005)
    done.set()
    reader.join()
    for kind, count in counts.items():
        _line(file, f"message {kind} {count}")
    _line(file, f"end {replica.version} {replica.full_digest()}")


def read(replica: Replica, file: int, done: threading.Event) -> None:
    """A client: writes down the digest of what it is served, computed from the tensors alone."""
    before = -1
    while not done.is_set():
        with replica.lease() as lease:
            if lease.version != before:
                tree = lease.tree["params"]
                tensors = {"params/a/w": tree["a"]["w"], "params/b": tree["b"],
                           "params/c": tree["c"]}  # fmt: skip
                digest = digests.to_hex(digests.numpy_digest(tensors))
                _line(file, f"served {lease.version} {digest}")
                before = lease.version
        time.sleep(0.001)


def jump_clock() -> None:
    """Lets `JUMPS` move this process's wall clock, an hour on or two back."""
    real, offset = time.time, [0.0]
    time.time = lambda: real() + offset[0]
    for number, jump in zip(JUMPS, (3600.0, -7200.0), strict=True):
        signal.signal(number, lambda *_, jump=jump: offset.__setitem__(0, offset[0] + jump))


def open_first(url: str) -> Any:
    """The log, once it is there."""
    while True:
        try:
            return open_log(url)
        except LogError:
            time.sleep(0.01)


def first_replica(log: Any) -> Replica:
    """A replica, once the log has a snapshot and the store answers."""
    while True:
        try:
            return Replica(log)
        except CdlError:
            time.sleep(0.01)


def _line(file: int, text: str) -> None:
    os.write(file, f"{text}\n".encode())
