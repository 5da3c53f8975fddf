"""Runs cells of the experiments and keeps what they show.

A finished cell is a file under experiments/results/ and is not run again; one that was stopped goes
on from its newest checkpoint in runs/, on another machine too if that folder is there. Several of
these processes may run at once: each takes cells that no other one has. Runs that start from the
weights of a file have folders of their own, named by its digest. Updates are signed.

    python -m experiments.grid --dataset mnist --profile full
"""

import dataclasses
import fcntl
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any, Literal

import jax
import tyro

from cdl_jax.errors import CdlError
from cdl_jax.train import TrainConfig, run
from cdl_jax.wire import signing
from experiments import drift_cells
from experiments.cells import MODELS, PROFILES, Cell, cells
from experiments.grid_files import Task, Weights, keep, life, note_program

RUNS = pathlib.Path("runs/grid")
SCANNED = ("sparse", "proactive")  # strategies that an accelerator takes many triggers of at once
# Versions between checkpoints: minutes of a step on a CPU. A full retraining is one version.
CHECKPOINTS = {"lenet5": 500, "resnet18": 100, "mobilenet_v2": 100, "resnet50": 50}
FEWEST = 25
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
    """Cells of these names alone, quick's or not; what is no cell's whole name stands for all
    cells that begin with it."""
    seeds: int | None = None
    """Seeds 0, 1, ... of each cell. None: the cell's own number; 1 in the quick profile."""
    init_weights: str | None = None
    """safetensors file of a torchvision state_dict that every run starts from. None: random."""
    limit: int | None = None
    """Samples of the stream, fewer than the profile's: for a trial, whose results are not kept."""
    log_to: str = str(RUNS)
    """Folder of what is under way."""


def main(options: Options) -> int:
    """Runs what is missing; 130 when interrupted, 1 when a cell cannot be, 2 for wrong options."""
    if wrong := _wrong(options):
        print(f"experiments: {wrong}", file=sys.stderr)
        return 2
    try:
        todo = [t for t in tasks(options) if options.limit or not t.result.exists()]
    except CdlError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
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
    """All that the options name, in the order that they run.

    Raises:
      ConfigError: when the initial weights cannot be read.
    """
    weights = Weights.of(options.init_weights)
    for model in options.models or _models(options):
        chosen = [c for c in _known(options) if _wanted(c, options)]
        turns = [(c, seed) for c in chosen for seed in range(_seeds(c, model, options))]
        # What needs several seeds comes first, seed by seed: an unfinished grid shows the most.
        for cell, seed in sorted(turns, key=lambda t: (t[0].seeds == 1, t[1])):
            yield Task(options.dataset, options.profile, model, cell, seed, weights)


def run_task(task: Task, options: Options) -> bool:
    """Runs a task to its end and keeps its result; False when it was interrupted."""
    limit, group = options.limit, pathlib.Path(options.log_to) / task.group
    # A trial is none of the whole run's lives.
    folder = (group.with_name(f"{group.name}-limit-{limit}") if limit else group) / task.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cell.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is at it
            return True
        if task.result.exists() and not limit:
            return True
        initial = group / task.initial
        with life(task, folder, initial) as lives:
            programs = note_program(folder)
            places = _places(task, folder, len(programs), limit)
            chosen = {**task.settings, **places, "seed": task.seed, "initial": str(initial)}
            summary = run(TrainConfig(**chosen).checked())
        if summary.interrupted:
            return False
        if not limit:
            keep(task, folder, summary, programs, lives)
        shutil.rmtree(folder)
    return True


def _places(task: Task, folder: pathlib.Path, number: int, limit: int | None) -> dict[str, Any]:
    """The settings that no bits of the outcome depend on, and the trial's length."""
    strategy = task.cell.settings["strategy"]
    places: dict[str, Any] = {
        "run": str(folder), "new_lineage": True, "init_weights": task.weights.file,
        "checkpoint_every": 1 if strategy == "full" else CHECKPOINTS.get(task.model, FEWEST),
    }  # fmt: skip
    if task.cell.ships:
        key = folder / "key.pem"
        if not key.exists():
            signing().write_pair(str(key))
        # A log belongs to one program; an old version is of no use here.
        places |= {"log": str(folder / f"log-{number}"), "sign_key": str(key)}
        places |= {"keep_versions": 1000, "digest_every": 0, "snapshot_every": 1000}
    if jax.default_backend() != "cpu" and strategy in SCANNED:
        places["scan"] = 50
    if limit:
        places["limit"] = limit
    return places


def _wrong(options: Options) -> str:
    """What the options name that is not there; empty when all is."""
    if (options.dataset, options.profile) not in PROFILES:
        known = ", ".join(p for d, p in PROFILES if d == options.dataset)
        return f"{options.dataset} has no profile {options.profile}; give one of {known}"
    names = [c.name for c in _known(options)]
    for start in options.only:
        if not any(name.startswith(start) for name in names):
            return f"--only {start} is the beginning of no cell; the cells are {', '.join(names)}"
        alone = dataclasses.replace(options, only=(start,))
        if not any(_wanted(c, alone) for c in _known(options)):
            return (
                f"--only {start} begins no cell of the quick profile; give one's whole name, or "
                "--profile full"
            )
    return ""


def _known(options: Options) -> list[Cell]:
    return drift_cells.cells() if options.profile == "drift" else cells(options.dataset)


def _models(options: Options) -> tuple[str, ...]:
    known = MODELS[options.dataset]
    return known[:2] if options.profile == "quick" else known


def _wanted(cell: Cell, options: Options) -> bool:
    names = {c.name for c in _known(options)}
    if cell.name in options.only:
        return True
    starts = tuple(x for x in options.only if x not in names)
    named = cell.name.startswith(starts) if options.only else True
    return named and (options.profile != "quick" or cell.quick)


def _seeds(cell: Cell, model: str, options: Options) -> int:
    if options.seeds is not None:
        return options.seeds
    several = options.profile != "quick" and model in ("lenet5", "resnet18")
    return cell.seeds if several else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
