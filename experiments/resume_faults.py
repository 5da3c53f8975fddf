"""Kills a trainer with SIGKILL again and again; what it leaves must be as if it never was killed.

Each of the runs is killed at a seeded random instant, some twice, some while a checkpoint is
being written, some between the log's append of a version and its checkpoint, and started again
until it ends. Parameters, residual, optimizer state, model
state, sampler, metrics (but for clock values) and every object of the log must then have the
bytes of the one run that nobody killed. Expected: all equal.

    python -m experiments.resume_faults            200 runs, about 30 minutes on 2 CPU cores
    python -m experiments.resume_faults --minutes 4           as many as that takes, and again
                                                              from where the results end

Every life of a run is a process of its own, forked from one that has imported everything and
has not touched a device, which saves the seconds that imports take.
"""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tyro

from cdl_jax.train import TrainConfig, run
from cdl_jax.train.checkpoint import Checkpoints
from experiments.runs import conditions, save

CLOCKS = ("first_at", "full_at", "made_at", "acknowledged_at")
KINDS = ("once", "twice", "while a checkpoint is written", "before a checkpoint")
VERSIONS, CHECKPOINT_EVERY = 30, 4
COUNTS = (
    "runs", "equal", "kills", "kills_while_a_checkpoint_was_written",
    "kills_between_append_and_checkpoint", "kills_with_a_checkpoint_older_than_the_log",
    "versions_found_in_the_log_again",
)  # fmt: skip
POLICIES = ("uniform", "inverse_use", "reservoir", "balanced")


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the campaign."""

    runs: int = 200
    """Runs that are killed, those of the results that are there included."""
    minutes: float = 600.0
    """Begin no run after so many; the next start goes on from there."""
    results: str = "experiments/results"
    """Folder of the results; empty writes none."""
    seed: int = 0
    """Of the instants."""


def main(options: Options) -> int:
    """Runs the campaign, writes resume_faults.json; status 1 where a byte differs."""
    command = f"python -m experiments.resume_faults --runs {options.runs} --seed {options.seed}"
    about = in_a_child(conditions, command) | {"kinds": list(KINDS), "policies": list(POLICIES)}
    path = pathlib.Path(options.results, "resume_faults.json")
    before = json.loads(path.read_text()) if options.results and path.exists() else {}
    if any(before.get(name) != fact for name, fact in about.items()):
        before = {}
    with tempfile.TemporaryDirectory(prefix="cdl_jax-faults-") as folder:
        result = campaign(
            options.runs, options.seed, pathlib.Path(folder), options.minutes, before=before
        )
    if options.results:
        save(options.results, path.name, about | result)
    return 0 if result["equal"] == result["runs"] else 1


def campaign(
    runs: int,
    seed: int,
    folder: pathlib.Path,
    minutes: float = 600.0,
    policies: Sequence[str] = POLICIES,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`runs` killed runs against the never killed one of the same settings, under `folder`.

    What an earlier campaign found, `before`, counts too.
    """
    counts = collections.Counter({name: (before or {}).get(name, 0) for name in COUNTS})
    different = list((before or {}).get("different", []))
    shared = bool(jax.config.values["jax_compilation_cache_dir"])
    if not shared:
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    _import_the_rest()
    expected, seconds, begun = {}, {}, time.monotonic()
    for policy in policies:
        place = folder / policy
        for _ in range(
            1 if shared else 2
        ):  # the first one fills the cache of programs, the second is timed
            shutil.rmtree(place, ignore_errors=True)
            started = time.monotonic()
            if live(config(place, policy)) != 0:
                raise SystemExit("the run that nobody kills failed")
            seconds[policy] = time.monotonic() - started
        expected[policy] = remains(place)
    for number in range(counts["runs"], runs):
        if time.monotonic() - begun > 60 * minutes:
            break
        policy, place = policies[number % len(policies)], folder / "killed"
        kind = KINDS[number // len(policies) % len(KINDS)]
        rng = np.random.default_rng([seed, number])
        killed, wrong = one(folder / policy, place, policy, kind, rng, seconds[policy])
        wrong += compare(expected[policy], remains(place))
        counts.update(killed)
        counts["equal"] += not wrong
        counts["runs"] += 1
        different += [{"run": number, "kind": kind, "policy": policy, "wrong": wrong}] * bool(wrong)
        print(f"{number + 1}/{runs} {kind}: {killed} {wrong[:3] or 'equal'}", file=sys.stderr)
        shutil.rmtree(place)
    return {name: counts[name] for name in COUNTS} | {"different": different}


def one(
    reference: pathlib.Path,
    place: pathlib.Path,
    policy: str,
    kind: str,
    rng: Any,
    seconds: float,
) -> tuple[dict[str, int], list[str]]:
    """One run, killed and started again until it ends; what happened, and what went wrong."""
    (place / "log").mkdir(parents=True)
    # Updates name their log's lineage, which is random: the same one makes them comparable.
    shutil.copy(reference / "log" / "log.json", place / "log")
    happened: dict[str, int] = dict.fromkeys(COUNTS[2:], 0)
    for _ in range(2 if kind == "twice" else 1):
        ended = live(config(place, policy), instant=Instant.draw(rng, kind, seconds))
        head, kept = newest(updates(config(place, policy))), max(0, newest(checkpoints(place)))
        happened["kills"] += ended < 0
        happened["kills_while_a_checkpoint_was_written"] += ended == -2
        due = head % CHECKPOINT_EVERY == 0
        happened["kills_between_append_and_checkpoint"] += ended < 0 and due and 0 <= kept < head
        happened["kills_with_a_checkpoint_older_than_the_log"] += ended < 0 and head > kept
        happened["versions_found_in_the_log_again"] += max(0, head - kept)
    status = live(config(place, policy))
    error = place / "run" / "error.txt"
    return happened, [] if status == 0 else [f"status {status}: {error.read_text()}"]


def config(place: pathlib.Path, policy: str) -> TrainConfig:
    """A short run on the digits, with a checkpoint every few versions."""
    return TrainConfig(
        initial_samples=128, epochs=1, limit=8 * VERSIONS, trigger=8, batch_size=32, density=0.01,
        snapshot_every=10, digest_every=0,
        checkpoint_every=CHECKPOINT_EVERY, history=policy,  # type: ignore
        history_size=64, pace=200.0, log=str(place / "log"), run=str(place / "run"),
    ).checked()  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instant:
    """When a life ends: so long after the log has reached a version, or after the start."""

    version: int
    wait: float  # seconds
    in_save: bool  # and not before a checkpoint is being written

    @classmethod
    def draw(cls, rng: Any, kind: str, seconds: float) -> "Instant":
        """One kill in ten falls anywhere in the start, the others in the stream."""
        if kind == KINDS[3]:
            version = CHECKPOINT_EVERY * int(rng.integers(1, VERSIONS // CHECKPOINT_EVERY + 1))
            return cls(version, rng.uniform(0, 0.005), False)
        version = int(rng.integers(-3, VERSIONS))
        wait = rng.uniform(0, seconds / 2 if version < 0 else 0.1)
        return cls(version, wait, kind == KINDS[2])

    def has_come(self, settings: TrainConfig, reached: float | None) -> bool:
        """Whether it is time, given when the version was reached (None: not yet)."""
        late = reached is not None and time.monotonic() - reached > self.wait
        return late and (not self.in_save or is_saving(settings))


def live(settings: TrainConfig, *, instant: Instant | None = None) -> int:
    """One life of a run: its exit status; -1 when killed, -2 when killed in a checkpoint."""
    child = os.fork()
    if not child:
        os._exit(_child(settings))
    reached = None
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if instant is not None:
            if reached is None and newest(updates(settings)) >= instant.version:
                reached = time.monotonic()
            if instant.has_come(settings, reached):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return -2 if is_saving(settings) else -1
        time.sleep(0.003)
    return os.waitstatus_to_exitcode(ended[1])


def _child(settings: TrainConfig) -> int:
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        run(settings)
    except BaseException as error:
        pathlib.Path(str(settings.run), "error.txt").write_text(repr(error))
        return 1
    return 0


def is_saving(settings: TrainConfig) -> bool:
    """Whether a checkpoint is half written."""
    folder = checkpoints(pathlib.Path(str(settings.run)).parent)
    return any(not p.name.isdigit() for p in folder.glob("*"))


def newest(folder: pathlib.Path) -> int:
    """The newest version in a folder with an entry for each."""
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=-1)


def updates(settings: TrainConfig) -> pathlib.Path:
    """Where a log's updates are."""
    return pathlib.Path(str(settings.log)) / "updates"


def checkpoints(place: pathlib.Path) -> pathlib.Path:
    """Where a run's checkpoints are."""
    return place / "run" / "checkpoints" / "newest"


def remains(place: pathlib.Path) -> dict[str, Any]:
    """All that a run leaves, by name: its last checkpoint's arrays, its metrics, its log."""
    return in_a_child(_remains, place)


def _remains(place: pathlib.Path) -> dict[str, Any]:
    saved = Checkpoints(checkpoints(place)).newest()
    assert saved is not None
    out: dict[str, Any] = {f"state {k}": v.tobytes().hex() for k, v in saved.arrays.items()}
    progress = saved.record["progress"]
    progress["summary"].pop("seconds")
    progress.pop("metrics_bytes")  # clock values take more digits or fewer
    out["progress"] = progress
    rows = [json.loads(x) for x in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    out["metrics"] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]
    out["triggers"] = (place / "run" / "triggers.txt").read_text()
    for path in sorted((place / "log").rglob("*")):
        if path.is_file() and "owner" not in path.parts and path.name != "status.json":
            out[f"log {path.relative_to(place / 'log')}"] = path.read_bytes().hex()
    return out


def _import_the_rest() -> None:
    import sklearn.datasets  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))


def in_a_child(function: Any, *arguments: Any) -> dict[str, Any]:
    """A function's JSON result, from a process of its own: this one must not touch a device."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with os.fdopen(write, "w") as out:
            json.dump(function(*arguments), out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
