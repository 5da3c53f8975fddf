"""Trainer, replicas and store killed or broken at random instants, in hundreds of seeded runs.

    python -m experiments.deploy.faults            500 runs (make faults), about 15 minutes
    python -m experiments.deploy.faults --runs 8   as the tests do
    python -m experiments.deploy.faults --seconds 240 --go-on      in pieces, into one report

Each run is a writer process, two replica processes with a reader in each, and a store: a folder,
or a real redis-server. Faults come at random instants; a supervisor starts again what has ended,
and does nothing else. In every run it must hold that

    1. no version that was acknowledged is lost: the log leads to it, with the bytes' own digest;
    2. no reader was ever served a tensor that is not the version's, by the full digest;
    3. all replicas end at the last version, with the trainer's digest;
    4. one process alone wrote, and nobody mended anything by hand.

Expected: 0 failures. Processes are forked from one that has loaded everything and used nothing.
"""

import collections
import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import rich.progress
import tyro

import cdl_jax.core.tree  # loaded before the forks, as the next one
import cdl_jax.deploy.redis_log  # noqa: F401
from cdl_jax.core import digest as digests
from cdl_jax.deploy import Replica, Retention, open_log
from experiments.deploy import fault_actors as actors
from experiments.deploy.broker import Broker
from experiments.runs import write

PATIENCE = 60.0
KINDS = (
    "kill writer",
    "kill replica",
    "kill both",
    "full disk",
    "clock jump",
    "second writer",
    "writer stands still",
    "store away",
    "broker killed",
    "broker killed, data lost",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the campaign."""

    runs: int = 500
    """Seeded runs, in the whole report."""
    seconds: float | None = None
    """Begin no run after so many seconds. None: no limit."""
    go_on: bool = False
    """Add the runs that are missing to the report in the folder."""
    first: int = 0
    """Seed of the first run."""
    versions: int = 60
    """Versions in a run."""
    out: str | None = "experiments/results"
    """Folder for faults.json. None writes nothing."""


class Failure(Exception):
    """What a run must not show."""


class Actor:
    """A process that is started again when it has ended before its work is done."""

    def __init__(self, work: Callable[[], None]):
        self._work, self.starts = work, 0
        self.start()

    def start(self) -> None:
        """Forks."""
        self.starts += 1
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                with _note.path.open("a") as file:
                    faulthandler.dump_traceback_later(PATIENCE / 3, file=file)
                    self._work()
                status = 0
            except BaseException as error:
                _note(f"{os.getpid()} {type(error).__name__}: {error}")
            finally:
                os._exit(status)

    def signal(self, number: int) -> bool:
        """Sends a signal; whether it ran."""
        if self.pid:
            os.kill(self.pid, number)
        return bool(self.pid)

    def kill(self) -> bool:
        """SIGKILL, and waits; whether it ran."""
        ran = self.signal(signal.SIGKILL)
        if ran:
            os.waitpid(self.pid, 0)
            self.pid = 0
        return ran

    def done(self) -> bool:
        """Whether the work is done; starts it again where it ended otherwise."""
        if self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return False
            self.pid = 0
            if status == 0:
                self.starts = -1
        if self.starts < 0:
            return True
        self.start()
        return False


class Run:
    """One seeded run."""

    def __init__(self, seed: int, folder: pathlib.Path, versions: int, faults: Any):
        self.rng, self.seed, self.folder, self.versions = (
            random.Random(seed),
            seed,
            folder,
            versions,
        )
        self.faults, self.data_lost = faults, False
        redis = self.rng.random() < 0.4 and shutil.which("redis-server") is not None
        self.broker = Broker(folder / "broker") if redis else None
        self.url = self.broker.url() if self.broker else str(folder / "log")
        self.keep = self.rng.choice([None, 10, 25])
        self.keep_seconds = self.rng.choice([None, 0.2, 600.0])
        self.rate = self.rng.choice([0.0, 0.05, 0.3])
        self.acks = folder / "acks"
        self.acks.mkdir()
        _note.path = folder / "notes"
        self.writer = Actor(self._write)
        self.replicas = [Actor(lambda i=i: self._follow(i)) for i in range(2)]

    def play(self) -> None:
        """Breaks things at random instants, waits for the end, and checks."""
        try:
            for _ in range(self.rng.randint(1, 3)):
                time.sleep(self.rng.random() * 0.25)
                self._break(self.rng.choice(KINDS))
            self._wait()
            self._check()
        finally:
            for actor in [self.writer, *self.replicas]:
                actor.kill()
            if self.broker:
                self.broker.kill()

    def _wait(self) -> None:
        """Until all have ended. Counts its own turns, so that a machine may stand still."""
        turns = 0
        while not self._all_done():
            turns += 1
            if turns > PATIENCE / 0.01:
                raise Failure(f"no end within {PATIENCE} s")
            time.sleep(0.01)

    def _all_done(self) -> bool:
        ended = [actor.done() for actor in (self.writer, *self.replicas)]  # asks each of them
        return all(ended)

    def _write(self) -> None:
        keep = Retention(versions=self.keep, seconds=self.keep_seconds)
        actors.write(self.url, self.seed, self.acks, self.versions, keep)

    def _follow(self, number: int) -> None:
        out = self.folder / f"served-{number}"
        actors.follow(self.url, self.seed + number, out, self.versions, self.rate)

    def _break(self, kind: str) -> None:
        if kind.startswith("broker") and not self.broker:
            kind = "store away"
        if kind == "store away" and self.broker:
            kind = "broker killed"
        if self._all_done():
            return  # too late: nothing runs that could break
        if getattr(self, "_" + kind.replace(", ", "_").replace(" ", "_"))():
            self.faults[kind] += 1

    # Each says whether there was something to hit.

    def _kill_writer(self) -> bool:
        return self.writer.kill()

    def _kill_replica(self) -> bool:
        return self.rng.choice(self.replicas).kill()

    def _kill_both(self) -> bool:
        ran = [actor.kill() for actor in (self.writer, self.replicas[0])]
        return any(ran)

    def _full_disk(self) -> bool:
        hit = self.writer.signal(signal.SIGUSR1)
        time.sleep(0.03 + 0.1 * self.rng.random())
        self.writer.signal(signal.SIGUSR2)
        return hit

    def _clock_jump(self) -> bool:
        everybody = (self.writer, *self.replicas)
        ran = [actor.signal(self.rng.choice(actors.JUMPS)) for actor in everybody]
        return any(ran)

    def _second_writer(self) -> bool:
        twin = Actor(self._write)
        time.sleep(0.05 + 0.1 * self.rng.random())
        return twin.kill()

    def _writer_stands_still(self) -> bool:
        """Longer than its heart may: a twin takes over, and the first must stop when it wakes."""
        hit = self.writer.signal(signal.SIGSTOP)
        twin = Actor(self._write)
        time.sleep(2.5 * actors.PATIENCE)
        self.writer.signal(signal.SIGCONT)
        time.sleep(0.05)
        twin.kill()
        return hit

    def _store_away(self) -> bool:
        folder, away = self.folder / "log" / "updates", self.folder / "away"
        if not folder.is_dir():
            return False
        away.write_text("")
        _exchange(folder, away)
        time.sleep(0.02 + 0.2 * self.rng.random())
        _exchange(folder, away)
        return True

    def _broker_killed(self, *, with_data: bool = False) -> bool:
        assert self.broker
        self.broker.kill(with_data=with_data)
        time.sleep(0.2 * self.rng.random())
        self.broker.start()
        return True

    def _broker_killed_data_lost(self) -> bool:
        self.data_lost = True
        return self._broker_killed(with_data=True)

    def _check(self) -> None:
        truth = _truth(self.seed, self.versions)
        for number in range(2):
            ends = set()
            for line in (self.folder / f"served-{number}").read_text().splitlines():
                what, *rest = line.split()
                if what == "message":
                    self.faults[f"message {rest[0]}"] += int(rest[1])
                    continue
                version, digest = int(rest[0]), rest[1]
                if digest != truth[version]:
                    raise Failure(f"replica {number} served {digest} as version {version}")
                ends |= {version} if what == "end" else set()
            if ends != {self.versions}:
                raise Failure(f"replica {number} ended at {ends}")
        self._check_log(truth)

    def _check_log(self, truth: list[str]) -> None:
        """In a process of its own: this one must go on forking."""
        out = self.folder / "check"

        def check() -> None:
            log = open_log(self.url)
            head = log.head() or 0
            snapshots = log.snapshots()
            for version in range(snapshots[0], head + 1):
                held = version in snapshots or log.read(version) is not None
                if self.data_lost and not held and version < snapshots[-1]:
                    continue  # gone with the broker's data, as if trimmed
                found = Replica(log, at=version).full_digest()
                if found != truth[version]:
                    raise Failure(f"the log leads to {found} at version {version}")
            out.write_text(str(head))

        checker = Actor(check)
        _, status = os.waitpid(checker.pid, 0)
        acked = max(int(path.name) for path in self.acks.iterdir())
        if status or not acked == int(out.read_text()) == self.versions:
            raise Failure(f"the log does not lead to what was acknowledged, up to {acked}")


def _exchange(one: pathlib.Path, other: pathlib.Path) -> None:
    """Both names at once: between two renames a writer would make the folder anew."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = [os.fsencode(path) for path in (one, other)]
    if ctypes.CDLL(None, use_errno=True).renameat2(here, names[0], here, names[1], exchange):
        raise OSError(ctypes.get_errno(), "renameat2", str(one))


def _truth(seed: int, versions: int) -> list[str]:
    trainer = actors.Trainer(seed)
    out = [digests.to_hex(trainer.digest)]
    for _ in range(versions):
        trainer.step()
        out.append(digests.to_hex(trainer.digest))
    return out


def _note(text: str) -> None:
    with _note.path.open("a") as file:
        file.write(text + "\n")


def main(options: Options) -> int:
    """Runs the campaign; 0 when no run failed. Ctrl-C ends it early, with a report."""
    report = _begun(options)
    faults, begun = collections.Counter(report["faults"]), time.monotonic()
    done = {seed for first, last in report["seeds"] for seed in range(first, last + 1)}
    seeds = sorted({*range(options.first, options.first + options.runs)} - done)
    before = report["seconds"]
    with contextlib.suppress(KeyboardInterrupt):
        for seed in rich.progress.track(seeds, "faults"):
            if options.seconds is not None and time.monotonic() - begun > options.seconds:
                break
            failure = play(seed, options.versions, faults)
            report["failures"] += [failure] if failure else []
            done.add(seed)
            report |= {
                "command": f"python -m experiments.deploy.faults --runs {len(done)}",
                "runs": len(done),
                "seeds": _ranges(done),
                "faults": dict(sorted(faults.items())),
                "faults_in_all": sum(faults.values()),
                "seconds": round(before + time.monotonic() - begun, 1),
            }
            if options.out is not None:
                write(options.out, "faults.json", report)
    print(json.dumps(report, indent=1))
    return 1 if report["failures"] else 0


def _begun(options: Options) -> dict[str, Any]:
    """An empty report, or the one that is to be added to."""
    empty = {
        "command": "", "runs": 0, "seeds": [], "versions_a_run": options.versions,
        "failures": [], "faults": {}, "faults_in_all": 0, "seconds": 0.0,
    }  # fmt: skip
    path = pathlib.Path(options.out or "") / "faults.json"
    if options.out is None or not options.go_on or not path.exists():
        return empty
    report = json.loads(path.read_text())
    if report["versions_a_run"] != options.versions:
        raise SystemExit(f"{path} has runs of {report['versions_a_run']} versions; remove it")
    return report


def _ranges(seeds: set[int]) -> list[list[int]]:
    """First and last seed of each stretch without gaps."""
    out: list[list[int]] = []
    for seed in sorted(seeds):
        if out and seed == out[-1][1] + 1:
            out[-1][1] = seed
        else:
            out.append([seed, seed])
    return out


def play(seed: int, versions: int, faults: "collections.Counter[str]") -> dict[str, Any] | None:
    """One run; None, or what went wrong, with its folder left in place."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cdl_jax-faults-"))
    try:
        Run(seed, folder, versions, faults).play()
    except Failure as error:
        notes = folder / "notes"
        said = notes.read_text().splitlines()[-40:] if notes.exists() else []
        print(f"seed {seed}: {error}", file=sys.stderr, flush=True)
        return {"seed": seed, "folder": str(folder), "why": str(error), "notes": said}
    shutil.rmtree(folder)
    return None


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
