"""Training time of each strategy against full retraining's, and of one step against one retraining.

LeNet5 on MNIST in the paper's settings (Prapas et al. 2021, section 5): full retraining trains from
scratch on the first 10,000, 20,000, ... 50,000 samples, 10 epochs each (11,700 steps); proactive
training takes one step whenever 8, 16, 32 or 64 of the stream's 50,000 samples have come. Training
alone is timed: drawing and gathering batches, and steps; scoring and publishing belong to neither.
Ten times in each retraining the strategies take turns, 1,000 samples of the stream each, so that
what else the machine does falls on all of them. Expected: the ratio of the step counts (0.53,
0.27, 0.13, 0.07), within a tenth.

    python -m experiments.training_time          about 3 minutes a seed on 2 CPU cores
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from cdl_jax.data import load
from cdl_jax.models import classifier, create_model
from cdl_jax.train import TrainConfig
from cdl_jax.train.arrival import Trigger
from cdl_jax.train.beginning import deployable, untrained
from cdl_jax.train.feed import Feed
from cdl_jax.train.initial import Trained, fit, fit_step
from cdl_jax.train.steps import Steps
from cdl_jax.train.strategies import plan
from experiments.cells import Cell, proactive, settings, sparse
from experiments.origin import origin
from experiments.runs import conditions, save, stamp

SEGMENT = 10_000  # samples of the stream between two retrainings
TURNS = 10  # of the streams in a retraining
METHOD = f"{TURNS} turns in a retraining; none compiles while it is timed"
CELLS = (*map(proactive, (8, 16, 32, 64)), *map(sparse, (1e-2, 1e-3, 1e-4)))


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the comparison."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    segments: int = 5
    """Of 10,000 samples each: the whole stream has 5."""
    results: str = "experiments/results"
    """Folder of the result."""


def main(options: Options) -> int:
    """Measures the seeds that are missing, writes training_time.json after each, prints it."""
    path = pathlib.Path(options.results) / "training_time.json"
    result = known(path)
    segments = {len(row["samples"]) for row in result["retraining"]} - {options.segments}
    if segments:
        print(f"experiments: {path} is of {segments.pop()} segments, not {options.segments}; give "
              "that number, or other --results", file=sys.stderr)  # fmt: skip
        return 2
    done = {row["seed"] for row in result["retraining"]}
    missing = [seed for seed in options.seeds if seed not in done]
    if not missing:
        print(f"experiments: nothing is missing: {path} has the seeds "
              f"{', '.join(map(str, options.seeds))}")  # fmt: skip
    for seed in missing:
        retraining, rows = measure(seed, options.segments)
        made = {"method": METHOD, **stamp()}
        result["retraining"].append(retraining | made)
        result["cells"] += [row | made for row in rows]
        words = f"--seeds {' '.join(map(str, options.seeds))} --segments {options.segments}"
        result |= conditions(f"python -m experiments.training_time {words}")
        result["data"] = origin("mnist")
        save(options.results, "training_time.json", result)
    return 0


def known(path: pathlib.Path) -> dict[str, Any]:
    """What the file has, without the rows of another method: they compare with no new ones."""
    result = json.loads(path.read_text()) if path.exists() else {}
    for rows in ("cells", "retraining"):
        result[rows] = [row for row in result.get(rows, ()) if row.get("method") == METHOD]
    return result


def measure(seed: int, segments: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Seconds and steps of every strategy over the stream's first segments."""
    data = load("mnist")
    base = TrainConfig(**settings("mnist", "full", "lenet5", proactive(8)), seed=seed).checked()
    model = classifier(create_model("lenet5", data.classes), (data.mean, data.std))
    step = fit_step(model.loss_fn, plan(base).optimizer)
    start = untrained(base, data, model)

    def retrain(count: int, pace: "Pace | None" = None) -> Trained:
        return jax.block_until_ready(fit(
            start, data.batch, count, step if pace is None else pace.step,
            epochs=base.epochs, batch_size=base.batch_size, seed=seed,
        ))  # fmt: skip

    counts = [base.initial_samples + SEGMENT * turn for turn in range(segments)]
    steps = [base.epochs * -(-count // base.batch_size) for count in counts]
    initial = retrain(base.initial_samples)
    for count in counts:  # compiles the short last batches, as a retraining calls them
        jax.block_until_ready(step(initial, data.batch(np.arange(count % base.batch_size)),
                                   jax.device_put(np.int32(0)), jax.random.key(0)))  # fmt: skip
    streams = [Stream(cell, seed, data, model, initial) for cell in CELLS]
    retrainings = []
    for count, length in zip(counts, steps, strict=True):
        pace = Pace(step, length, streams)
        whole = timed(lambda count=count, pace=pace: retrain(count, pace))
        retrainings.append(whole - pace.elsewhere)
    for stream in streams:
        stream.take(0, last=True)
    total = sum(retrainings)
    retraining = {"seed": seed, "samples": counts, "steps": steps, "seconds": rounded(retrainings)}
    return retraining, [stream.row(total, sum(steps), retrainings) for stream in streams]


class Pace:
    """A retraining's step that lets the streams have their turns in between.

    Attributes:
      elsewhere: seconds of these turns, which are none of the retraining's.
    """

    def __init__(self, step: Callable[..., Any], length: int, streams: "list[Stream]"):
        self._step, self._streams = step, streams
        self._turns = {round((turn + 1) * length / TURNS) for turn in range(TURNS)}
        self._taken, self.elsewhere = 0, 0.0

    def step(self, *inputs: Any) -> Any:
        """One step of the retraining, and a turn of each stream where it is time."""
        out, self._taken = self._step(*inputs), self._taken + 1
        if self._taken in self._turns:
            jax.block_until_ready(out)  # what is under way belongs to the retraining
            self.elsewhere += timed(self._turn)
        return out

    def _turn(self) -> None:
        for stream in self._streams:
            stream.take(SEGMENT // TURNS)


class Stream:
    """A strategy's steps over the stream, timed."""

    def __init__(self, cell: Cell, seed: int, data: Any, model: Any, initial: Trained):
        chosen = settings("mnist", "full", "lenet5", cell)
        self.cell, self.config = cell, TrainConfig(**chosen, seed=seed).checked()
        self.feed = Feed(self.config, data)
        self.steps = Steps(self.config, model)
        self.state = deployable(self.config, jax.tree.map(jnp.copy, initial))  # donated
        shape = min(self.config.batch_size, self.config.initial_samples)
        self.steps.warm_up(self.state, data.batch(np.zeros(shape, np.int64)))
        self.seconds, self.version = 0.0, 0
        self.position = self.due = self.config.initial_samples

    def take(self, samples: int, *, last: bool = False) -> None:
        """All steps that so many more samples fill; at the stream's end also the short one."""
        self.due += samples
        self.seconds += timed(lambda: self._steps(last))

    def row(self, total: float, all_steps: int, retrainings: list[float]) -> dict[str, Any]:
        """The outcome beside full retraining's."""
        one = self.seconds / self.version
        return {
            "cell": self.cell.name,
            "seed": self.config.seed,
            "steps": self.version,
            "seconds": round(self.seconds, 3),
            "step, ms": round(1000 * one, 3),
            "time / full retraining": round(self.seconds / total, 4),
            "steps / full retraining": round(self.version / all_steps, 4),
            "one retraining / one step": rounded([x / one for x in retrainings], 0),
        }

    def _steps(self, last: bool) -> None:
        trigger = self.config.trigger
        while self.due - self.position >= (1 if last else trigger):
            stop = min(self.position + trigger, self.due)
            arrived = Trigger(self.position, stop, 0.0, 0.0)
            batch = self.feed.batch(arrived, self.version, 0.0, None)
            self.state, _ = self.steps.step(self.state, batch)
            self.version, self.position = self.version + 1, stop
        jax.block_until_ready(self.state)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it took."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def rounded(values: list[float], digits: int = 3) -> list[float]:
    """Each rounded."""
    return [round(x, digits) for x in values]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
