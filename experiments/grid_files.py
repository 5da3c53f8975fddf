"""The files of a cell: what it began with, kept beside its run, and its result."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from cdl_jax.deploy.publisher import difference
from cdl_jax.errors import ConfigError
from cdl_jax.models.torchvision import content_digest
from cdl_jax.train import TrainConfig
from cdl_jax.train.program import program
from cdl_jax.train.progress import Summary
from experiments import drift_cells
from experiments.cells import Cell, settings
from experiments.origin import origin
from experiments.runs import code, conditions, stamp

RESULTS = pathlib.Path("experiments/results")
POINTS = 50  # of a curve


@dataclasses.dataclass(frozen=True)
class Weights:
    """That every run starts from: a file's, or random ones."""

    file: str | None
    digest: str = ""

    @classmethod
    def of(cls, file: str | None) -> "Weights":
        """Of a file, read at once.

        Raises:
          ConfigError: when it cannot be.
        """
        return cls(file, "" if file is None else content_digest(file))

    @property
    def suffix(self) -> str:
        """Of the folders of their results: none for random weights."""
        return f"-{self.digest[:8]}" if self.digest else ""

    def __str__(self) -> str:
        if self.file is None:
            return "random (Linen's initialisers), by the seed"
        return f"{pathlib.Path(self.file).name}, {self.digest}"


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell with all that names its run."""

    dataset: str
    profile: str
    model: str
    cell: Cell
    seed: int
    weights: Weights

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.model}-{self.cell.name}-s{self.seed}"

    @property
    def group(self) -> str:
        """Of the folders that its files lie in."""
        return f"{self.dataset}-{self.profile}{self.weights.suffix}"

    @property
    def initial(self) -> str:
        """Of the folder, in the group's, of the initial models that its run may begin with."""
        scenario = self.cell.settings.get("scenario", "")
        return f"initial/{self.model}-{scenario}{'-' * bool(scenario)}s{self.seed}"

    @property
    def result(self) -> pathlib.Path:
        """Where its outcome lies."""
        return RESULTS / self.group / f"{self.name}.jsonl"

    @property
    def settings(self) -> dict[str, Any]:
        """`TrainConfig`'s, but for seed and places."""
        return settings(self.dataset, self.profile, self.model, self.cell)

    @property
    def command(self) -> str:
        """That runs it again, and lower seeds that are missing."""
        weights = "" if self.weights.file is None else f" --init-weights {self.weights.file}"
        return (
            f"python -m experiments.grid --dataset {self.dataset} --profile {self.profile} "
            f"--models {self.model} --only {self.cell.name} --seeds {self.seed + 1}{weights}"
        )


@contextlib.contextmanager
def life(task: Task, folder: pathlib.Path, initial: pathlib.Path) -> Iterator[list[dict[str, Any]]]:
    """The lives of a run so far, this one last, noted beside it: code, seconds, initial model.

    Of a life that was killed nobody knows the seconds.

    Raises:
      ConfigError: when it began with something else.
    """
    file = folder / "begun.json"
    facts = {
        **task.settings, "seed": task.seed, "initial_weights": str(task.weights),
        "signed": task.cell.ships,
    }  # fmt: skip
    begun = json.loads(file.read_text()) if file.exists() else {"with": facts}
    if begun["with"] != facts:
        raise ConfigError(
            f"{folder} was begun with other settings ({difference(facts, begun['with'])}); go on "
            "as it was begun, or remove that folder to begin anew"
        )
    # Runs that were begun before lives were noted have their commits.
    old = [{"commit": x, "wall_seconds": None} for x in begun.get("commits", ())]
    this = {**code(), "wall_seconds": None}
    begun = {"with": facts, "lives": [*begun.get("lives", old), this]}
    file.write_text(json.dumps(begun))
    before, started = set(initial.glob("*/0")), time.monotonic()
    try:
        yield begun["lives"]
    finally:
        this["wall_seconds"] = round(time.monotonic() - started, 1)
        this["trained_the_initial_model"] = set(initial.glob("*/0")) != before
        file.write_text(json.dumps(begun))


def note_program(folder: pathlib.Path) -> list[Any]:
    """The programs that took part in this run so far, this one included."""
    file = folder / "programs.json"
    known = json.loads(file.read_text()) if file.exists() else []
    if not known or known[-1] != program():
        known.append(program())
        file.write_text(json.dumps(known))
    return known


def keep(
    task: Task,
    folder: pathlib.Path,
    summary: Summary,
    programs: list[Any],
    lives: list[dict[str, Any]],
) -> None:
    """Writes a task's result: what it was, its curve, its summary; a line each.

    Args:
      task: of the result.
      folder: of its run.
      summary: of its run.
      programs: that took part.
      lives: of the run; it took the sum of their seconds, None where one was killed.
    """
    seconds = [one["wall_seconds"] for one in lives]
    whole = None if None in seconds else round(sum(seconds), 1)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    header = {
        "cell": task.cell.name, "model": task.model, "seed": task.seed, "profile": task.profile,
        "settings": task.settings, "initial_weights": str(task.weights), "programs": programs,
        "data": origin(task.dataset), "signed": task.cell.ships,
        "lives": lives, "wall_seconds": whole,
        **conditions(task.command), **stamp(),
    }  # fmt: skip
    out = dataclasses.asdict(summary)
    if not task.cell.ships:
        out["bytes_sent"] = out["versions"] * out["dense_bytes"]
    if task.profile == "drift":
        header["stream"] = drift_cells.stream(TrainConfig(**task.settings, seed=task.seed), lines)
    rows = [header, *curve(lines), {"summary": out}]
    task.result.parent.mkdir(parents=True, exist_ok=True)
    draft = task.result.with_suffix(".part")
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft.rename(task.result)


def curve(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some points of a run's metrics; means are over the versions since the point before."""
    step = max(1, len(lines) // POINTS)
    out = []
    for first in range(0, len(lines), step):
        some = lines[first : first + step]
        last, count = some[-1], sum(x["samples"] for x in some)
        out.append({
            "position": last["position"],
            "version": last["version"],
            "accuracy": round(last["accuracy"], 6),
            "accuracy_here": round(sum(x["correct"] for x in some) / count, 6),
            "frozen_accuracy": round(last["frozen_accuracy"], 6),
            "entries": round(sum(x["entries"] for x in some) / len(some), 1),
            "bytes": round(sum(x.get("bytes", 0) for x in some) / len(some), 1),
        })  # fmt: skip
    return out
