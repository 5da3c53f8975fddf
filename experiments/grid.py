"""Runs cells of the experiments and keeps what they show.

A finished cell is a file under experiments/results/ and is not run again; one that was stopped goes
on from its newest checkpoint in runs/, on another machine too if that folder is there. Several of
these processes may run at once: each takes cells that no other one has.

    python -m experiments.grid --dataset mnist --profile full
"""

import dataclasses
import fcntl
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import tyro

from cdl_jax.errors import CdlError
from cdl_jax.models.torchvision import content_digest
from cdl_jax.train import TrainConfig, run
from cdl_jax.train.job import program
from experiments import drift_cells
from experiments.cells import MODELS, PROFILES, Cell, cells, settings
from experiments.runs import conditions

RESULTS = pathlib.Path("experiments/results")
RUNS = pathlib.Path("runs/grid")
POINTS = 50  # of a curve
SCANNED = ("sparse", "proactive")  # strategies that an accelerator takes many triggers of at once
Profile = Literal["full", "quick", "drift"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the grid."""

    dataset: Literal["mnist", "cifar10"] = "mnist"
    """Which of the paper's data sets."""
    profile: Profile = "full"
    """full: the paper's settings. quick: a small form of them. drift: streams that change."""
    models: tuple[str, ...] = ()
    """Of the data set's models, these alone."""
    only: tuple[str, ...] = ()
    """Cells whose names begin with one of these alone."""
    seeds: int | None = None
    """Seeds 0, 1, ... of each cell. None: the cell's own number; 1 in the quick profile."""
    init_weights: str | None = None
    """safetensors file of a torchvision state_dict that every run starts from. None: random."""
    limit: int | None = None
    """Samples of the stream, fewer than the profile's: for a trial, whose results are not kept."""
    log_to: str = str(RUNS)
    """Folder of what is under way."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell with all that names its run."""

    dataset: str
    profile: str
    model: str
    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.model}-{self.cell.name}-s{self.seed}"

    @property
    def result(self) -> pathlib.Path:
        """Where its outcome lies."""
        return RESULTS / f"{self.dataset}-{self.profile}" / f"{self.name}.jsonl"


def main(options: Options) -> int:
    """Runs what is missing; 130 when interrupted, 1 when a cell cannot be run."""
    if (options.dataset, options.profile) not in PROFILES:
        known = ", ".join(p for d, p in PROFILES if d == options.dataset)
        print(f"experiments: {options.dataset} has no profile {options.profile}; give one of "
              f"{known}", file=sys.stderr)  # fmt: skip
        return 2
    todo = [t for t in tasks(options) if options.limit or not t.result.exists()]
    for number, task in enumerate(todo):
        print(f"[{number + 1}/{len(todo)}] {task.dataset} {task.profile} {task.name}", flush=True)
        try:
            if not run_task(task, options):
                return 130
        except CdlError as error:
            print(f"experiments: {task.name}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("experiments: interrupted; the same command goes on", file=sys.stderr)
            return 130
        jax.clear_caches()
    return 0


def tasks(options: Options) -> Iterator[Task]:
    """All that the options name, in the order that they run."""
    for model in options.models or _models(options):
        known = drift_cells.cells() if options.profile == "drift" else cells(options.dataset)
        chosen = [c for c in known if _wanted(c, options)]
        turns = [(c, seed) for c in chosen for seed in range(_seeds(c, model, options))]
        # What needs several seeds comes first, seed by seed: an unfinished grid shows the most.
        for cell, seed in sorted(turns, key=lambda t: (t[0].seeds == 1, t[1])):
            yield Task(options.dataset, options.profile, model, cell, seed)


def run_task(task: Task, options: Options) -> bool:
    """Runs a task to its end and keeps its result; False when it was interrupted."""
    limit, runs = options.limit, pathlib.Path(options.log_to)
    folder = runs / f"{task.dataset}-{task.profile}" / task.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is at it
            return True
        if task.result.exists() and not limit:
            return True
        made_by = _note_program(folder)
        config = _config(task, folder, options)
        summary = run(config.checked())
        if summary.interrupted:
            return False
        if not limit:
            keep(task, folder, summary, made_by, weights_of(options))
        shutil.rmtree(folder)
    return True


def weights_of(options: Options) -> str:
    """Where the runs' initial weights come from."""
    file = options.init_weights
    if file is None:
        return "random (Linen's initialisers), by the seed"
    return f"{pathlib.Path(file).name}, {content_digest(file)}"


def keep(task: Task, folder: pathlib.Path, summary: Any, made_by: list[Any], weights: str) -> None:
    """Writes a task's result: what it was, its curve, its summary; a line each."""
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    command = f"python -m experiments.grid --dataset {task.dataset} --profile {task.profile}"
    chosen = settings(task.dataset, task.profile, task.model, task.cell)
    header = {
        "cell": task.cell.name, "model": task.model, "seed": task.seed, "profile": task.profile,
        "settings": chosen,
        "initial_weights": weights, "programs": made_by,
        "commit": json.loads((folder / "about.json").read_text())["commit"],
        **conditions(f"{command} --models {task.model} --only {task.cell.name}"),
    }  # fmt: skip
    out = dataclasses.asdict(summary)
    if not task.cell.ships:
        out["bytes_sent"] = out["versions"] * out["dense_bytes"]
    if task.profile == "drift":
        header["stream"] = drift_cells.stream(TrainConfig(**chosen, seed=task.seed), lines)
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


def _config(task: Task, folder: pathlib.Path, options: Options) -> TrainConfig:
    chosen = settings(task.dataset, task.profile, task.model, task.cell)
    places: dict[str, Any] = {
        "run": str(folder), "initial": str(folder.parent / "initial"), "new_lineage": True,
        "init_weights": options.init_weights,
    }  # fmt: skip
    if task.cell.ships:
        # A log belongs to one program; an old version is of no use here.
        places["log"] = str(folder / f"log-{_number(folder)}")
        places |= {"keep_versions": 1000, "digest_every": 0, "snapshot_every": 1000}
    if jax.default_backend() != "cpu" and task.cell.settings["strategy"] in SCANNED:
        places["scan"] = 50
    if options.limit:
        places["limit"] = options.limit
    return TrainConfig(**{**chosen, **places}, seed=task.seed)


def _note_program(folder: pathlib.Path) -> list[Any]:
    """The programs that took part in this run so far, this one included."""
    file = folder / "programs.json"
    known = json.loads(file.read_text()) if file.exists() else []
    if not known or known[-1] != program():
        known.append(program())
        file.write_text(json.dumps(known))
    return known


def _number(folder: pathlib.Path) -> int:
    return len(json.loads((folder / "programs.json").read_text()))


def _models(options: Options) -> tuple[str, ...]:
    known = MODELS[options.dataset]
    return known[:2] if options.profile == "quick" else known


def _wanted(cell: Cell, options: Options) -> bool:
    named = not options.only or cell.name.startswith(options.only)
    return named and (options.profile != "quick" or cell.quick)


def _seeds(cell: Cell, model: str, options: Options) -> int:
    if options.seeds is not None:
        return options.seeds
    several = options.profile != "quick" and model in ("lenet5", "resnet18")
    return cell.seeds if several else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
