"""What a trainer does around the jitted step, in shares of it: LeNet5 on MNIST, sparse 1e-3, a log.

Clocks are put around the parts of the real loop from outside, in a run of their own since they
take time themselves, a part inside another counting for itself alone; step is the dispatch and the
wait for the results. The baseline is the same compiled
program, the step with the scoring of the new samples, again and again without a loop or a log;
the loop pauses for it every 50 versions, since a shared machine's speed changes from one second to
the next. While a version is scored, counted and published, the next step is on its way, so most of
the host's work costs no time: `seen` is how much longer the loop takes than its program beside
it, `host` all of the host's work, hidden or not. Both in shares of the step. Expected: seen under
10%.

    python -m experiments.overhead          about 3 minutes on 2 CPU cores
"""

import collections
import contextlib
import cProfile
import dataclasses
import pathlib
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import tyro

from cdl_jax.data import load
from cdl_jax.deploy import publisher
from cdl_jax.deploy.outbox import Outbox
from cdl_jax.train import TrainConfig, delivery, loop, run, taker
from cdl_jax.train.beginning import deployable, untrained
from cdl_jax.train.cluster import Cluster
from cdl_jax.train.feed import Feed, shapes
from cdl_jax.train.frozen import FrozenModel
from cdl_jax.train.inputs import model_for
from cdl_jax.train.progress import Bar
from cdl_jax.train.records import Records
from cdl_jax.train.scorecard import Scorecard
from cdl_jax.train.steps import Steps
from experiments.bench.timing import median_interval
from experiments.runs import conditions, save

HOST = ("sampling", "feeding", "scoring", "metrics", "encoding", "appending", "loop")
BLOCK = 50  # versions between two pauses
FEW = 25  # steps that are timed together without the loop
UNLIKE = 3  # versions behind a pause: a step was ready before it was asked for
PLACES = (
    (Feed, "positions", "sampling"), (Feed, "batch", "feeding"), (Feed, "read", "feeding"),
    (Cluster, "put", "feeding"), (Steps, "prepare", "step"), (Steps, "take", "step"),
    (FrozenModel, "right", "scoring"), (Scorecard, "predicted", "metrics"),
    (Scorecard, "labelled", "metrics"), (Scorecard, "count", "metrics"),
    (Records, "trigger", "metrics"), (Records, "line", "metrics"), (Bar, "show", "metrics"),
    (publisher.Publisher, "tell", "metrics"), (publisher, "encode_update", "encoding"),
    (delivery.Delivery, "deliver", "encoding"), (Outbox, "update", "appending"),
    (loop.ContinuousTrainer, "keep", "checkpoint"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the measurement."""

    rounds: int = 5
    """Runs without clocks around the parts."""
    limit: int = 8_000
    """Samples of the stream in each: a version is 8."""
    seed: int = 0
    """Of the runs."""
    folder: str = "runs/overhead"
    """Where logs and run folders lie meanwhile."""
    results: str = "experiments/results"
    """Folder of the result."""


class Clock:
    """Seconds of each part of each version; what a part takes inside another is its own alone."""

    def __init__(self):
        self.versions: list[dict[str, float]] = []
        self._now, self._inner = collections.defaultdict[str, float](float), [0.0]
        self._last = time.perf_counter()

    def around(self, work: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same work, timed."""

        def timed(*args: Any, **more: Any) -> Any:
            begun = time.perf_counter()
            self._inner.append(0.0)
            try:
                return work(*args, **more)
            finally:
                took = time.perf_counter() - begun
                self._now[part] += took - self._inner.pop()
                self._inner[-1] += took

        return timed

    def version_ends(self, pause: Callable[[], None]) -> None:
        """Closes a version's account: the rest of its time is the loop's. A pause is nobody's."""
        now = time.perf_counter()
        rest = now - self._last - sum(self._now.values())
        self.versions.append({**self._now, "loop": rest, "total": now - self._last})
        pause()
        self._now.clear()
        self._last = time.perf_counter()


def main(options: Options) -> int:
    """Measures, writes overhead.json, prints it."""
    # ext4 looks at each file that was deleted in the last minutes before it makes another: none is,
    # before the end.
    pathlib.Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        config = _config(options, folder)
        bare = Bare(config)
        clocked, blocks = in_the_loop(config, bare, PLACES), []
        for number in range(options.rounds):
            print(f"[{number + 1}/{options.rounds}]", file=sys.stderr, flush=True)
            blocks += in_the_loop(config, bare)
        profiled = profile(config)
    words = f"--rounds {options.rounds} --limit {options.limit} --seed {options.seed}"
    result = {
        "about": "Median milliseconds a version.",
        "settings": "LeNet5, MNIST, sparse 1e-3 per tensor, trigger 8, batch 128, folder log",
        "seed": options.seed,
        "versions_timed": sum(len(block.rows) for block in blocks),
        **summary(clocked, blocks),
        "profile": profiled,
        **conditions(f"python -m experiments.overhead {words}"),
    }
    save(options.results, "overhead.json", result)
    return 0


class Block(NamedTuple):
    """Versions of a run, and its program alone right behind them; seconds."""

    rows: list[dict[str, float]]  # by part
    step: float
    program: float  # the step with the scoring


def in_the_loop(
    config: TrainConfig, bare: "Bare", places: tuple[tuple[Any, str, str], ...] = ()
) -> list[Block]:
    """The blocks of a run with clocks at some places, without the first one, which warms up."""
    clock, alone = Clock(), []

    def pause(trainer: loop.ContinuousTrainer) -> None:
        if len(clock.versions) % BLOCK == 0:
            jax.block_until_ready(trainer.state)
            alone.append(bare.times())

    with clocks(clock, pause, places):
        _fresh(config)
    rows = clock.versions[:-1]  # the last one has no next step beside it
    return [
        Block(rows[place * BLOCK + UNLIKE : (place + 1) * BLOCK], *times)
        for place, times in enumerate(alone)
    ][1:]


def summary(clocked: list[Block], blocks: list[Block]) -> dict[str, Any]:
    """Medians by part, and what of them is overhead."""
    rows = [row for block in clocked for row in block.rows]
    parts = {name: _median([row.get(name, 0.0) for row in rows])
             for name in ("step", *HOST, "checkpoint")}  # fmt: skip
    total = _median([row["total"] for block in blocks for row in block.rows])
    step = _median([block.step for block in blocks])
    host = sum(parts[name] for name in HOST)
    seen = [_seen(block, statistics.median) for block in blocks]
    means = [_seen(block, statistics.fmean) for block in blocks]
    return {
        "parts, ms": {name: round(x, 4) for name, x in parts.items()},
        "total without these clocks, ms": round(total, 4),
        "step alone, ms": round(step, 4),
        "step with scoring alone, ms": round(_median([block.program for block in blocks]), 4),
        "host, ms": round(host, 4),
        "host / step": round(host / step, 4),
        "blocks": len(blocks),
        "seen / step": median_interval(seen),
        "seen / step, of means": median_interval(means),
    }


def _seen(block: Block, middle: Callable[[Any], float]) -> float:
    """The mean has what comes now and then: snapshots, digests, checkpoints."""
    return (middle([row["total"] for row in block.rows]) - block.program) / block.step


@contextlib.contextmanager
def clocks(
    clock: Clock,
    pause: Callable[[loop.ContinuousTrainer], None],
    places: tuple[tuple[Any, str, str], ...],
) -> Iterator[None]:
    """The trainer with clocks around its parts, if any, and a look at it behind each version."""
    pending, finish = taker.Pending, loop.ContinuousTrainer._finish

    def awaited(trigger: Any, arrived: int, outcome: Any) -> Any:
        return pending(trigger, arrived, clock.around(outcome, "step"))

    def finished(trainer: Any, *args: Any) -> None:
        finish(trainer, *args)
        clock.version_ends(lambda: pause(trainer))

    with contextlib.ExitStack() as stack:
        for owner, name, part in places:
            timed = clock.around(getattr(owner, name), part)
            stack.enter_context(mock.patch.object(owner, name, timed))
        if places:
            stack.enter_context(mock.patch.object(taker, "Pending", awaited))
        stack.enter_context(mock.patch.object(loop.ContinuousTrainer, "_finish", finished))
        yield


class Bare:
    """The run's compiled step, with the scoring and without, and no loop around it."""

    def __init__(self, config: TrainConfig):
        data = load(config.dataset)
        model = model_for(config, data)
        self._steps = Steps(config, model)
        self._state = deployable(config, untrained(config, data, model))
        self._batch = jax.tree.map(jnp.asarray, shapes(config, data))
        self._new = jax.tree.map(jnp.asarray, data.batch(range(config.trigger)))
        self.times()  # compiles

    def times(self) -> tuple[float, float]:
        """Seconds a version of a few steps alone, and of steps with scorings."""
        return self._few(scores=False), self._few(scores=True)

    def _few(self, *, scores: bool) -> float:
        begun = time.perf_counter()
        for _ in range(FEW):
            self._take(scores=scores)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - begun) / FEW

    def _take(self, *, scores: bool) -> None:
        if scores:
            self._state, _ = self._steps.take(self._state, self._batch, self._new)
        else:
            self._state, _ = self._steps.step(self._state, self._batch)


def profile(config: TrainConfig, rows: int = 20) -> list[dict[str, Any]]:
    """The functions of such a run that took most time of their own, by cProfile."""
    profiler = cProfile.Profile()
    with mock.patch.object(
        loop.ContinuousTrainer, "run", _profiled(profiler, loop.ContinuousTrainer.run)
    ):
        _fresh(config)
    stats: Any = pstats.Stats(profiler)
    ordered = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:rows]
    return [
        {"function": f"{'/'.join(pathlib.Path(file).parts[-2:])}:{name}", "calls": calls,
         "own_ms": round(1000 * own, 1), "cumulative_ms": round(1000 * whole, 1)}
        for (file, _, name), (_, calls, own, whole, _) in ordered
    ]  # fmt: skip


def _profiled(profiler: cProfile.Profile, work: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: profiler.runcall(work, *args)


def _config(options: Options, folder: str) -> TrainConfig:
    return TrainConfig(
        dataset="mnist", density=1e-3, trigger=8, seed=options.seed, limit=options.limit,
        initial=f"{folder}/initial",
    ).checked()  # fmt: skip


def _fresh(config: TrainConfig) -> None:
    folder = tempfile.mkdtemp(dir=pathlib.Path(str(config.initial)).parent)
    run(dataclasses.replace(config, log=f"{folder}/log", run=f"{folder}/run"))


def _median(seconds: Any) -> float:
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
