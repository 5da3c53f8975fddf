"""A tabular stream that drifts: which flights will be late, learned while the year goes by.

    make example-stream                       about 2 minutes on 2 cores, no download at run time
    python -m experiments.example_stream --density 0.001

A model with embeddings (`experiments.flights`, which see for the data) is trained on the first
50,000 flights of 2013, January and February. The rest is a stream, in the order of departure;
whether a flight was late is known only 500 departures later, about half a day. The same initial
model then stays as it is, learns from new flights alone, or learns proactively, from new and old
ones, with dense and with sparse updates. A replica in a process of its own follows the last.

Late flights are a quarter, so accuracy says little: who never warns is right in 76%. The table has
the log loss, and the normalized entropy, which is that in times of the loss of predicting the
stream's own share of late flights each time (He et al., Practical lessons from predicting clicks
on ads at Facebook, 2014). Expected: 0.97 frozen, 0.95 online, 0.93 proactive, 0.94 sparse.

Ctrl-C stops it between two versions; the same command goes on.
"""

import contextlib
import dataclasses
import math
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import rich.console
import rich.table
import tyro

from cdl_jax.errors import CdlError
from cdl_jax.train import TrainConfig, run
from cdl_jax.train.config import Strategy
from experiments import flights
from experiments.demo import read_json, read_lines
from experiments.runs import conditions, save

DENSE: tuple[Strategy, ...] = ("frozen", "online", "proactive")
PATIENCE = 60.0  # seconds


class ExampleError(CdlError):
    """The example did not show what it must."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the example."""

    folder: str = "runs/example_stream"
    """Where the stream, the runs and the log go; what a finished example left goes first."""
    file: str | None = None
    """Zip file with flights.csv. None: the package's."""
    seed: int = 0
    """Of every run."""
    initial_samples: int = 50_000
    """Flights of the initial training."""
    limit: int | None = None
    """Flights of the stream. None: all."""
    label_delay: int = 500
    """Departures between a flight's own and the news of its arrival."""
    trigger: int = 32
    """New labels that trigger a step."""
    density: float = 0.01
    """Share of the model's entries that a sparse update sends."""
    pace: float = 4000.0
    """Flights a second at which the followed run's stream arrives."""
    out: str = "experiments/results"
    """Folder for example_stream.json."""


def main(options: Options) -> int:
    """Runs the example; 0 when the replica ends as the trainer's model, bit for bit."""
    try:
        result = example(options, pathlib.Path(options.folder))
    except (CdlError, OSError) as error:
        print(f"example_stream: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("example_stream: stopped; the same command goes on", file=sys.stderr)
        return 130
    save(options.out, "example_stream.json", result)
    rich.console.Console().print(table(result))
    return 0


def example(options: Options, folder: pathlib.Path) -> dict[str, Any]:
    """Every strategy on the same stream, the sparse one followed by a replica."""
    if (folder / "finished").exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    print("reading the flights", file=sys.stderr)
    fields = flights.load(options.file)
    np.savez(folder / "flights.npz", allow_pickle=False, **fields)
    late = fields["label"][options.initial_samples :][: options.limit]
    summaries = {strategy: learn(options, folder, strategy) for strategy in DENSE}
    with replica(folder, until=-(-len(late) // options.trigger)) as process:
        summaries["sparse"] = learn(options, folder, "sparse", str(folder / "log"), options.pace)
        check(process, folder, summaries["sparse"]["digest"])
    result = {
        **conditions(command(options)),
        "data": options.file or f"{flights.PACKAGE} {version(flights.PACKAGE)}",
        "options": vars(options),
        "flights": len(late),
        "scores": scores(summaries, float(late.mean())),
        "created to served, ms": freshness(folder),
    }
    (folder / "finished").touch()
    return result


def learn(
    options: Options,
    folder: pathlib.Path,
    strategy: Strategy,
    log: str | None = None,
    pace: float | None = None,
) -> dict[str, Any]:
    """One run over the stream, from where an interrupted one stopped; its summary."""
    config = TrainConfig(
        dataset=f"numpy:{folder / 'flights.npz'}",
        model="experiments.flights:model",
        strategy=strategy,
        seed=options.seed,
        initial_samples=options.initial_samples,
        epochs=2,
        initial=str(folder / "initial"),
        limit=options.limit,
        label_delay=options.label_delay,
        trigger=options.trigger,
        density=options.density,
        scope="global",
        pace=pace,
        log=log,
        run=str(folder / strategy),
    )
    summary = run(config.checked())
    if summary.interrupted:
        raise KeyboardInterrupt
    return vars(summary)


@contextlib.contextmanager
def replica(folder: pathlib.Path, until: int) -> "Iterator[subprocess.Popen[bytes]]":
    """A replica in a process of its own, which ends at a version."""
    words = ["replica", "--log", str(folder / "log"), "--until", str(until), "--wait", "300"]
    words += ["--run", str(folder / "replica")]
    with (folder / "replica.txt").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cdl_jax.cli", *words], stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def check(process: "subprocess.Popen[bytes]", folder: pathlib.Path, digest: str) -> None:
    """Waits for the replica's end; its full digest must be the trainer's."""
    try:
        status: Any = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        status = f"nothing within {PATIENCE:.0f} s"
    if status:
        raise ExampleError(f"the replica ended with {status}; see {folder / 'replica.txt'}")
    served = read_json(folder / "replica" / "summary.json")["digest"]
    if served != digest:
        raise ExampleError(f"the replica has digest {served}, the trainer {digest}")


def scores(summaries: dict[str, dict[str, Any]], share: float) -> dict[str, dict[str, Any]]:
    """Prequential scores and bytes; first those of predicting the late share each time."""
    entropy = -sum(p * math.log(p) for p in (share, 1 - share) if p)
    rows = {"late share alone": {"loss": entropy, "accuracy": max(share, 1 - share)}}
    rows |= {name: {key: x[key] for key in ("loss", "accuracy")} for name, x in summaries.items()}
    for row in rows.values():
        row["normalized entropy"] = row["loss"] / entropy
    for name, summary in summaries.items():
        if name != "frozen":
            rows[name]["bytes an update"] = bytes_an_update(summary)
    return rows


def bytes_an_update(summary: dict[str, Any]) -> float:
    """As sent to the log; what was not published would have been whole models."""
    if not summary["bytes_sent"]:
        return summary["dense_bytes"]
    return summary["bytes_sent"] / summary["versions"]


def freshness(folder: pathlib.Path) -> dict[str, float]:
    """From a version's creation to its first possible use, of those made while it was followed."""
    lines = read_lines(folder / "sparse" / "metrics.jsonl")
    made = {x["version"]: x["made_at"] for x in lines}
    served = {x["version"]: x["served_at"] for x in read_lines(folder / "replica/metrics.jsonl")}
    since = min(served.values())
    delays = [1e3 * (at - made[v]) for v, at in served.items() if made[v] >= since]
    median, p99 = np.percentile(delays, [50, 99]).round(2).tolist()
    return {"median": median, "p99": p99, "of": len(delays)}


def table(result: dict[str, Any]) -> rich.table.Table:
    """The result to look at."""
    names = ("loss", "normalized entropy", "accuracy", "bytes an update")
    fresh = result["created to served, ms"]
    out = rich.table.Table(
        title=f"{result['flights']:,} flights, each scored before it is learned from",
        caption=f"created to served: median {fresh['median']} ms, p99 {fresh['p99']} ms, of "
        f"{fresh['of']:,} versions; trainer and replica are equal",
        box=None,
    )
    for name in ("", *names):
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for strategy, row in result["scores"].items():
        cells = (f"{row[n]:.4f}" for n in names[:3])
        size = row.get("bytes an update")
        out.add_row(strategy, *cells, "-" if size is None else f"{size:,.0f}")
    return out


def command(options: Options) -> str:
    """The words that run this again."""
    given = {n: x for n, x in vars(options).items() if x != getattr(Options, n)}
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in given.items()]
    return " ".join(["python -m experiments.example_stream", *flags])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the replica must not outlive it
    sys.exit(main(tyro.cli(Options, description=__doc__)))
