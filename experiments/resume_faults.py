"""Kills a trainer with SIGKILL again and again; what it leaves must be as if it never was killed.

Each of the runs is killed at a seeded random instant, some twice, some while a checkpoint is
being written, some between the log's append of a version and its checkpoint, some with versions in
the log and no checkpoint yet, and started again until it ends. Parameters, residual, optimizer
state, model state, sampler, metrics (but for clock values) and every object of the log must then
have the bytes of the one run of the same settings that nobody killed. Where a clock cuts the stream
that one is made of the killed run's own cuts. Expected: all equal.

    python -m experiments.resume_faults            200 runs, about 30 minutes on 2 CPU cores
    python -m experiments.resume_faults --minutes 4           as many as that takes, and again
                                                              from where the results end
"""

import collections
import dataclasses
import json
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tyro
import xxhash

import cdl_jax
from experiments.lives import (
    CHECKPOINT_EVERY,
    KINDS,
    SETTINGS,
    TIMED,
    TRIGGER,
    Instant,
    checkpoints,
    compare,
    config,
    in_a_child,
    live,
    newest,
    remains,
)
from experiments.runs import conditions, save, write

COUNTS = (
    "runs", "equal", "kills", "kills_while_a_checkpoint_was_written",
    "kills_between_append_and_checkpoint", "kills_with_a_checkpoint_older_than_the_log",
    "kills_with_versions_and_no_checkpoint", "versions_found_in_the_log_again",
    "lives_that_ended_before_their_kill",
)  # fmt: skip
FILE = "resume_faults.json"
_TRIES = 30  # to kill a run before it ends


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
    """Runs what is missing, keeps the outcome after each run; status 1 where a byte differs."""
    command = f"python -m experiments.resume_faults --runs {options.runs} --seed {options.seed}"
    same = {
        "seed": options.seed, "sources": sources(), "kinds": list(KINDS),
        "settings": list(SETTINGS),
    }  # fmt: skip
    about = in_a_child(conditions, command) | same

    def keep(found: dict[str, Any]) -> None:
        if options.results:
            write(options.results, FILE, about | found)

    with tempfile.TemporaryDirectory(prefix="cdl_jax-faults-") as folder:
        result = campaign(
            options.runs, options.seed, pathlib.Path(folder), options.minutes,
            before=earlier(options.results, same), keep=keep,
        )  # fmt: skip
    if options.results:
        save(options.results, FILE, about | result)
    return 0 if result["equal"] == result["runs"] else 1


def earlier(results: str, same: dict[str, Any]) -> dict[str, Any]:
    """What the file holds, where these facts of it are the same; else it begins anew."""
    path = pathlib.Path(results, FILE)
    if not results or not path.exists():
        return {}
    found = json.loads(path.read_text())
    if other := [name for name, fact in same.items() if found.get(name) != fact]:
        print(f"experiments: {path} is of other {', '.join(other)}: its {found['runs']} runs do "
              "not count", file=sys.stderr)  # fmt: skip
        return {}
    return found


def sources() -> str:
    """Digest of what was put to the test: results of another one do not count."""
    root, digest = pathlib.Path(cdl_jax.__file__).parent, xxhash.xxh3_128()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".cc", ".h")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def campaign(
    runs: int,
    seed: int,
    folder: pathlib.Path,
    minutes: float = 600.0,
    settings: Sequence[str] = tuple(SETTINGS),
    before: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """`runs` killed runs against the never killed one of the same settings, under `folder`.

    What an earlier campaign found, `before`, counts too. `keep` is given all so far after each run.
    """

    def found() -> dict[str, Any]:
        return {name: counts[name] for name in COUNTS} | {"different": different}

    counts = collections.Counter({name: (before or {}).get(name, 0) for name in COUNTS})
    different = list((before or {}).get("different", []))
    shared = bool(jax.config.values["jax_compilation_cache_dir"])
    if not shared:
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    _import_the_rest()
    seconds, expected, begun = {}, {}, time.monotonic()
    for number in range(counts["runs"], runs):
        if time.monotonic() - begun > 60 * minutes:
            break
        name, kind = settings[number % len(settings)], KINDS[number // len(settings) % len(KINDS)]
        if name not in seconds:
            seconds[name] = unkilled(folder / name, name, 1 if shared else 2)
            expected[name] = remains(folder / name)
        rng = np.random.default_rng([seed, number])
        killed, wrong = one(folder / "killed", name, kind, rng, seconds[name])
        if name == TIMED and not wrong:
            expected[name] = of_its_cuts(folder / "killed", folder / "twin")
        wrong = wrong or compare(expected[name], remains(folder / "killed"))
        counts.update(killed)
        counts["equal"] += not wrong
        counts["runs"] += 1
        different += [{"run": number, "kind": kind, "settings": name, "wrong": wrong}] * bool(wrong)
        keep(found())
        print(f"{number + 1}/{runs} {name}, {kind}: {wrong[:3] or 'equal'}", file=sys.stderr)
    return found()


def unkilled(place: pathlib.Path, name: str, times: int, *, again: bool = False) -> float:
    """The seconds of the run that nobody kills.

    Twice where the first one fills the cache of programs, and the second is timed.
    """
    started = 0.0
    for _ in range(times):
        if not again:
            shutil.rmtree(place, ignore_errors=True)
        started = time.monotonic()
        if live(place, name, again=again) != 0:
            raise SystemExit(f"the run that nobody kills failed, {name}: {_failure(place)[0]}")
    return time.monotonic() - started


def one(
    place: pathlib.Path, name: str, kind: str, rng: Any, seconds: float
) -> tuple[dict[str, int], list[str]]:
    """One run, killed and started again until it ends; what happened, and what went wrong.

    A life that ends before its kill comes is none: the run begins anew, with another instant.
    """
    missed = 0
    while missed < _TRIES:
        shutil.rmtree(place, ignore_errors=True)
        happened = collections.Counter(lives_that_ended_before_their_kill=missed)
        statuses = [
            _killed(place, name, kind, rng, seconds, happened) for _ in range(kind_of(kind))
        ]
        if any(status > 0 for status in statuses):
            break
        if 0 not in statuses:
            status = live(place, name)
            return happened, [] if status == 0 else _failure(place)
        missed += 1
    return collections.Counter(lives_that_ended_before_their_kill=missed), _failure(place)


def kind_of(kind: str) -> int:
    """Kills of a run of this kind."""
    return 2 if kind == KINDS[1] else 1


def _killed(
    place: pathlib.Path, name: str, kind: str, rng: Any, seconds: float, happened: Any
) -> int:
    limit = config(place, name).limit
    assert limit is not None
    status = live(place, name, instant=Instant.draw(rng, kind, seconds, limit // TRIGGER))
    head, kept = newest(place / "log" / "updates"), newest(checkpoints(place))
    happened["kills"] += 1
    happened["kills_while_a_checkpoint_was_written"] += status == -2
    due = head > 0 and head % CHECKPOINT_EVERY == 0
    happened["kills_between_append_and_checkpoint"] += due and 0 <= kept < head
    happened["kills_with_a_checkpoint_older_than_the_log"] += 0 <= kept < head
    happened["kills_with_versions_and_no_checkpoint"] += kept < 0 < head
    happened["versions_found_in_the_log_again"] += max(0, head - max(0, kept))
    return status


def _failure(place: pathlib.Path) -> list[str]:
    error = place / "error.txt"
    return [error.read_text() if error.exists() else "no life was killed before its end"]


def of_its_cuts(killed: pathlib.Path, place: pathlib.Path) -> dict[str, Any]:
    """What a run that nobody kills leaves of the triggers of one that was killed."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "run").mkdir(parents=True)
    shutil.copy(killed / "run" / "triggers.txt", place / "run")
    unkilled(place, TIMED, 1, again=True)
    return remains(place)


def _import_the_rest() -> None:
    import sklearn.datasets  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
