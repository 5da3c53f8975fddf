"""Tables and plots of all results that lie under experiments/results/.

Writes report.md and its plots in a folder for each data set, profile and model. What has not been
run is said to be not run.

    python -m experiments.report
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Literal

import tyro

from experiments.cells import MODELS
from experiments.figures import (
    accuracy_bytes,
    accuracy_over_stream,
    accuracy_time,
    changed_parameters,
    drift,
    order,
    strategies,
    update_bytes,
    values,
)
from experiments.figures.results import RESULTS, Results, caption, load, weights_of

Draw = Callable[[Results, pathlib.Path, str], str]
FIGURES: dict[str, tuple[str, Draw]] = {
    "strategies": ("Strategies", strategies.draw),
    "accuracy_over_stream": ("Accuracy over the stream", accuracy_over_stream.draw),
    "accuracy_bytes": ("Accuracy against bytes", accuracy_bytes.draw),
    "accuracy_time": ("Accuracy against training time", accuracy_time.draw),
    "order": ("After the optimizer against before it", order.draw),
    "changed_parameters": ("Parameters that change in a step", changed_parameters.draw),
    "values": ("Forms of the new values", values.draw),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the report."""

    only: tuple[str, ...] = ()
    """Figures and tables by name. None: all, and report.md."""
    dataset: Literal["mnist", "cifar10"] | None = None
    """Of one data set alone. None: of both."""
    out: str = str(RESULTS / "report")
    """Folder of the report."""


def main(options: Options) -> int:
    """Writes what there are results for."""
    known = [*FIGURES, "drift", "update_bytes"]
    wrong = [name for name in options.only if name not in known]
    if wrong:
        print(f"experiments: no figure {wrong[0]!r}; give one of {', '.join(known)}",
              file=sys.stderr)  # fmt: skip
        return 2
    for dataset, models in MODELS.items():
        if options.dataset in (None, dataset):
            for profile in ("full", "quick"):
                for weights in weights_of(dataset, profile):
                    for model in models:
                        of_model(options, load(dataset, profile, model, weights))
    if options.dataset in (None, "mnist") and (not options.only or "drift" in options.only):
        of_drift(options, load("mnist", "drift", "lenet5"))
    if not options.only or "update_bytes" in options.only:
        bytes_of_models(options)
    return 0


def of_model(options: Options, results: Results) -> None:
    """The report of one model's results, if there are any."""
    if not results.by_cell:
        return
    folder = pathlib.Path(options.out) / _name(results)
    folder.mkdir(parents=True, exist_ok=True)
    runs = f"make {results.dataset} PROFILE={results.profile}"
    if results.weights:
        runs += f' GRID="--init-weights FILE", FILE of SHA-256 {results.weights[1:]}...'
    command = f"make report (runs: {runs})"
    said = caption(results, list(results.by_cell), command) + _triggers(results)
    parts = [f"# {results.title}\n", said + "\n"]
    for name, (title, draw) in FIGURES.items():
        if not options.only or name in options.only:
            parts.append(f"## {title}\n\n{draw(results, folder, command)}")
    if not options.only:
        (folder / "report.md").write_text("\n".join(parts))
        print(folder / "report.md")
    else:
        print("\n".join(parts))


def _name(results: Results) -> str:
    return f"{results.dataset}-{results.profile}{results.weights}-{results.model}"


def _triggers(results: Results) -> str:
    """What "trigger 8" stands for, where a profile steps more rarely."""
    real = sorted({r.header["settings"]["trigger"] for r in results.get("proactive-8")} - {8})
    return "".join(f". What is called trigger 8, and top-k, steps every {t} samples" for t in real)


def of_drift(options: Options, results: Results) -> None:
    """The tables of the streams that change, if there are any results."""
    if results.by_cell:
        folder = pathlib.Path(options.out) / "mnist-drift"
        folder.mkdir(parents=True, exist_ok=True)
        text = drift.draw(results, folder, "make report (runs: make drift)")
        (folder / "report.md").write_text(f"# Drift: {results.model} on MNIST\n\n{text}")
        print(folder / "report.md")


def bytes_of_models(options: Options) -> None:
    """The table of all models' updates, with the accuracies that there are."""
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    text = update_bytes.draw(folder, "make update-bytes")
    (folder / "update_bytes.md").write_text(f"# Bytes an update\n\n{text}")
    print(folder / "update_bytes.md")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
