"""Kills a trainer with SIGKILL again and again; what it leaves must be as if it never was killed.

Each of the runs is killed at a seeded random instant, some twice, some while a checkpoint is
being written, and started again until it ends. Parameters, residual, optimizer state, model
state, sampler, metrics (but for clock values) and every object of the log must then have the
bytes of the one run that nobody killed. Expected: all equal.

    python -m experiments.resume_faults            200 runs, about 30 minutes on 2 CPU cores

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
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tyro

from cdl_jax.train import TrainConfig, run
from cdl_jax.train.checkpoint import Checkpoints
from experiments.runs import conditions, save

CLOCKS = ("full_at", "made_at", "acknowledged_at")
KINDS = ("once", "twice", "while a checkpoint is written")
VERSIONS = 30
POLICIES = ("uniform", "inverse_use", "reservoir", "balanced")


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the campaign."""

    runs: int = 200
    """Runs that are killed."""
    minutes: float = 600.0
    """Begin no run after so many; the result says how many there were."""
    results: str = "experiments/results"
    """Folder of the results; empty writes none."""
    seed: int = 0
    """Of the instants."""


def main(options: Options) -> int:
    """Runs the campaign, writes resume_faults.json; status 1 where a byte differs."""
    with tempfile.TemporaryDirectory(prefix="cdl_jax-faults-") as folder:
        result = campaign(options.runs, options.seed, pathlib.Path(folder), options.minutes)
    command = f"python -m experiments.resume_faults --runs {options.runs} --seed {options.seed}"
    command += f" --minutes {options.minutes:g}"
    if options.results:
        save(options.results, "resume_faults.json", in_a_child(conditions, command) | result)
    return 0 if result["equal"] == result["runs"] else 1


def campaign(
    runs: int,
    seed: int,
    folder: pathlib.Path,
    minutes: float = 600.0,
    policies: Sequence[str] = POLICIES,
) -> dict[str, Any]:
    """`runs` killed runs against the never killed one of the same settings, under `folder`."""
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
    counts: collections.Counter[str] = collections.Counter()
    different = []
    for number in range(runs):
        if time.monotonic() - begun > 60 * minutes:
            break
        policy, place = policies[number % len(policies)], folder / "killed"
        kind = KINDS[number // len(policies) % len(KINDS)]
        rng = np.random.default_rng([seed, number])
        killed, wrong = one(folder / policy, place, policy, kind, rng, seconds[policy])
        wrong += compare(expected[policy], remains(place))
        counts.update({"kills": killed["kills"], "kills in a checkpoint": killed["in_save"]})
        counts["versions replayed"] += killed["replayed"]
        counts["equal"] += not wrong
        counts["runs"] += 1
        different += [{"run": number, "kind": kind, "policy": policy, "wrong": wrong}] * bool(wrong)
        print(f"{number + 1}/{runs} {kind}: {killed} {wrong[:3] or 'equal'}", file=sys.stderr)
        shutil.rmtree(place)
    return {
        "runs": counts["runs"], "equal": counts["equal"], "kills": counts["kills"],
        "kills_while_a_checkpoint_was_written": counts["kills in a checkpoint"],
        "versions_found_in_the_log_again": counts["versions replayed"], "different": different,
    }  # fmt: skip


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
    happened = {"kills": 0, "in_save": 0, "replayed": 0}
    for _ in range(2 if kind == "twice" else 1):
        ended = live(config(place, policy), instant=Instant.draw(rng, kind, seconds))
        happened["kills"] += ended < 0
        happened["in_save"] += ended == -2
    head, kept = newest(updates(config(place, policy))), newest(checkpoints(place))
    happened["replayed"] = max(0, head - max(0, kept))
    status = live(config(place, policy))
    error = place / "run" / "error.txt"
    return happened, [] if status == 0 else [f"status {status}: {error.read_text()}"]


def config(place: pathlib.Path, policy: str) -> TrainConfig:
    """A short run on the digits, with a checkpoint every few versions."""
    return TrainConfig(
        initial_samples=128, epochs=1, limit=8 * VERSIONS, trigger=8, batch_size=32, density=0.01,
        snapshot_every=10, digest_every=0, checkpoint_every=4, history=policy,  # type: ignore
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
