"""What checkpoints cost: training with and without them, and a ResNet50's save and restore.

LeNet5 on MNIST: runs with and without checkpoints in turn, each in a process of its own, the
stream's seconds alone. Two runs of one kind differ by more than checkpoints at the default interval
(500 versions of 8 samples) take, so these are far more frequent, and their cost is told for that
interval, where there are so many fewer; a save that waits for the one before it counts. A ResNet50
of CIFAR-10's shapes: what a save takes of the training's own time, and what a fresh process takes
to restore the trainer's state; compiling the step is timed apart, with an empty cache of programs
and with a filled one. Expected: under 3%, and under 10 s on 2 cores.

    python -m experiments.checkpoint_cost          about 7 minutes on 2 CPU cores
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import tyro

from cdl_jax.core.step import deployed
from cdl_jax.data import ImageData, from_arrays
from cdl_jax.train import TrainConfig, run
from cdl_jax.train.beginning import deployable, untrained
from cdl_jax.train.checkpoint import Checkpoints
from cdl_jax.train.feed import shapes
from cdl_jax.train.inputs import model_for
from cdl_jax.train.resume import Writer, start_from
from cdl_jax.train.steps import Steps
from experiments.figures.results import interval
from experiments.runs import conditions, save


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the measurement."""

    pairs: int = 5
    """Runs with checkpoints, each beside one without."""
    limit: int = 16_000
    """Samples of each run's stream."""
    saves: int = 5
    """Checkpoints of the large model that are timed."""
    model: str = "resnet50"
    """The large model."""
    seed: int = 0
    """Of all of it."""
    folder: str = "runs/checkpoint-cost"
    """Runs and checkpoints; emptied first."""
    results: str = "experiments/results"
    """Folder of the result."""
    only: str = ""
    """One measurement, in this process: train, save or restore. Empty: all, each in its own."""
    every: int = 25
    """Versions between checkpoints, of train."""


def main(options: Options) -> int:
    """Measures, writes checkpoint_cost.json, prints it."""
    parts = {"train": train, "save": save_large, "restore": restore_large}
    if options.only:
        print(json.dumps(parts[options.only](options)))
        return 0
    shutil.rmtree(options.folder, ignore_errors=True)
    words = f"--pairs {options.pairs} --limit {options.limit} --saves {options.saves}"
    result = {
        "seed": options.seed,
        "cores": len(os.sched_getaffinity(0)),
        "training": training(options),
        options.model: large(options),
        **conditions(f"python -m experiments.checkpoint_cost {words} --model {options.model}"),
    }
    save(options.results, "checkpoint_cost.json", result)
    return 0


def training(options: Options) -> dict[str, Any]:
    """Seconds of the stream with and without checkpoints, pair by pair."""
    _child(options, "train", every=0, limit=800)  # the initial model, and what compiles
    pairs = []
    for number in range(options.pairs):
        print(f"training: pair {number + 1} of {options.pairs}", file=sys.stderr, flush=True)
        turns = (0, options.every) if number % 2 else (options.every, 0)
        found = {every: _child(options, "train", every=every) for every in turns}
        pairs.append((found[options.every], found[0]))
    cost = [with_["seconds"] / without["seconds"] - 1 for with_, without in pairs]
    usual = TrainConfig().checkpoint_every
    mean, half = interval([x * options.every / usual for x in cost])
    return {
        "settings": f"LeNet5, MNIST, default settings, a checkpoint every {options.every} versions",
        "with, s": [round(with_["seconds"], 3) for with_, _ in pairs],
        "without, s": [round(without["seconds"], 3) for _, without in pairs],
        "versions": pairs[0][0]["versions"],
        "cost, %": [round(100 * x, 2) for x in cost],
        "cost, %, median": round(100 * statistics.median(cost), 2),
        f"cost of one every {usual}, %, mean and 95% interval": [
            round(100 * x, 2) for x in (mean, half or 0.0)
        ],
    }


def large(options: Options) -> dict[str, Any]:
    """A save's and a restore's seconds, the restore's with programs compiled and not."""
    print(f"{options.model}: saving", file=sys.stderr, flush=True)
    saved = _child(options, "save")
    restored = []
    for words in ("programs not compiled before", "programs in the cache"):
        print(f"{options.model}: restoring, {words}", file=sys.stderr, flush=True)
        restored.append({"cache": words, **_child(options, "restore")})
    return {"save": saved, "restore": restored}


def train(options: Options) -> dict[str, Any]:
    """One run on MNIST; 0 checkpoints only where it starts and ends."""
    folder = pathlib.Path(options.folder)
    shutil.rmtree(folder / "run", ignore_errors=True)
    summary = run(TrainConfig(
        dataset="mnist", limit=options.limit, seed=options.seed, run=str(folder / "run"),
        initial=str(folder / "initial"), checkpoint_every=options.every,
    ).checked())  # fmt: skip
    return {"seconds": summary.seconds, "versions": summary.versions}


def save_large(options: Options) -> dict[str, Any]:
    """Checkpoints of the large model, one after another: what the training waits, and in all."""
    config, data, model = _large(options)
    state = jax.block_until_ready(deployable(config, untrained(config, data, model)))
    with contextlib.closing(_writer(options)) as writer:
        writer.save_initial(deployed(state))
    checkpoints, waits, wholes = Checkpoints(_run(options) / "checkpoints" / "newest"), [], []
    for version in range(options.saves):
        begun = time.perf_counter()
        record = {"progress": {}, "program": {}, "config": {}, "lineage": None}
        checkpoints.save(version, {"state": state, "sampler": {}}, record)
        waits.append(time.perf_counter() - begun)
        checkpoints.wait()
        wholes.append(time.perf_counter() - begun)
    checkpoints.close()
    return {"the training waits, s": _rounded(waits), "until it is written, s": _rounded(wholes)}


def restore_large(options: Options) -> dict[str, Any]:
    """What a fresh process takes to have the state back, and then to compile and take a step."""
    cache = pathlib.Path(options.folder).absolute() / "programs"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    config, data, model = _large(options)
    begun = time.perf_counter()
    with contextlib.closing(_writer(options)) as writer:
        saved, initial = writer.newest(), writer.initial()
    assert saved is not None
    like = jax.eval_shape(lambda: deployable(config, untrained(config, data, model)))
    state = jax.block_until_ready(start_from(saved, initial, like, ()).state)
    restored = time.perf_counter()
    Steps(config, model).warm_up(state, jax.device_put(shapes(config, data)))
    compiled = time.perf_counter()
    return {
        "MB": round(sum(x.nbytes for x in saved.arrays.values()) / 1e6, 1),
        "restore, s": round(restored - begun, 2),
        "compile and take a step, s": round(compiled - restored, 2),
    }


def _large(options: Options) -> tuple[TrainConfig, ImageData, Any]:
    config = TrainConfig(dataset="cifar10", model=options.model, seed=options.seed).checked()
    rng = np.random.default_rng(options.seed)
    images = rng.integers(0, 256, (256, 32, 32, 3), np.uint8)
    data = from_arrays(images, np.arange(256) % 10, mean=(0.5,) * 3, std=(0.25,) * 3)
    return config, data, model_for(config, data)


def _writer(options: Options) -> Writer:
    return Writer(_run(options), keep=2, facts={})


def _run(options: Options) -> pathlib.Path:
    return pathlib.Path(options.folder) / options.model


def _child(options: Options, only: str, **changes: Any) -> dict[str, Any]:
    """What a measurement in a process of its own found, and the seconds of that process."""
    settings = {**vars(options), "only": only, **changes}
    words = [f"--{name}={x}" for name, x in settings.items()]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.checkpoint_cost", *words],
        stdout=subprocess.PIPE, check=False, text=True,
    )  # fmt: skip
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"process, s": round(time.perf_counter() - begun, 2)}


def _rounded(values: list[float]) -> list[float]:
    return [round(x, 3) for x in values]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
