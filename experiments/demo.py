"""The main job, for real: a trainer process, a log, two replica processes, one of them killed.

LeNet5 is trained on the first part of a data set; the rest is a stream from which the trainer
learns with sparse proactive steps, each published as one version. A NumPy-only replica is killed
with SIGKILL in mid-stream and started again. At the end the full digests of trainer and replicas
must be equal, bit for bit, else the exit status is not zero.

    python -m experiments.demo                    embedded digits, 1%, about a minute
    python -m experiments.demo --dataset mnist    the paper's MNIST settings at 0.1%
"""

import dataclasses
import json
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

import rich.console
import rich.table
import tyro

FOLLOW_AFTER_RESTART = 100
PATIENCE = 120.0
SETTINGS = {
    "digits": ["--density", "0.01", "--trigger", "4", "--pace", "60", "--snapshot-every", "50"],
    "mnist": ["--density", "0.001", "--trigger", "8", "--snapshot-every", "500"],
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the demo."""

    dataset: str = "digits"
    """digits, or mnist where TFDS_DATA_DIR (or --data-dir) has it."""
    data_dir: str | None = None
    """Folder of tensorflow_datasets."""
    folder: str = "runs/demo"
    """Where the log and the metrics go; emptied first."""
    seed: int = 0
    """Of the run."""
    verify_every: int = 10
    """Versions between a replica's recomputations of its full digest."""


class DemoError(Exception):
    """The demo did not show what it must."""


class Follower:
    """A replica process and what it wrote down."""

    def __init__(self, options: Options, backend: str, name: str):
        self.backend, self.run = backend, pathlib.Path(options.folder) / name
        command = ["replica", "--log", f"{options.folder}/log", "--backend", backend]
        command += ["--run", str(self.run), "--verify-every", str(options.verify_every)]
        self.process = start(command)

    def lines(self) -> list[dict[str, Any]]:
        """One record per version served."""
        return read_lines(self.run / "metrics.jsonl")

    def version(self) -> int:
        """The version served last."""
        lines = self.lines()
        return lines[-1]["version"] if lines else 0

    def stop(self) -> dict[str, Any]:
        """Ends the process in order; its summary, with the full digest."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=PATIENCE):
            raise DemoError(f"the {self.backend} replica ended with {self.process.returncode}")
        return read_json(self.run / "summary.json")


def main(options: Options) -> int:
    """Runs the demo; 0 when every digest agrees."""
    console = rich.console.Console()
    if options.dataset not in SETTINGS:
        console.print(f"demo: dataset is {options.dataset!r}; give one of {', '.join(SETTINGS)}")
        return 1
    shutil.rmtree(options.folder, ignore_errors=True)
    children: list[subprocess.Popen[bytes]] = []
    try:
        return demonstrate(options, console, children)
    except (DemoError, subprocess.TimeoutExpired) as error:
        console.print(f"demo: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        for child in children:
            child.kill()


def demonstrate(options: Options, console: Any, children: list[subprocess.Popen[bytes]]) -> int:
    """Trainer and replicas side by side, the kill, the table."""
    trainer = start(train_command(options, "sparse", log=True))
    children.append(trainer)
    first, steady = Follower(options, "numpy", "numpy"), Follower(options, "jax", "jax")
    children += [first.process, steady.process]
    kill_at = versions_of(options) // 3
    wait_for(lambda: first.version() >= kill_at, trainer, f"version {kill_at}")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    console.print(f"numpy replica killed with SIGKILL at version {first.version()}, started again")
    again = Follower(options, "numpy", "numpy-again")
    children.append(again.process)
    if trainer.wait():
        raise DemoError(f"the trainer ended with status {trainer.returncode}")
    summary = read_json(pathlib.Path(options.folder) / "trainer" / "summary.json")
    for follower in (again, steady):
        wait_for(lambda f=follower: f.version() >= summary["versions"], None, "the last version")
    ends = {"numpy replica": again.stop(), "jax replica": steady.stop()}
    online = start(train_command(options, "online", log=False))
    children.append(online)
    if online.wait():
        raise DemoError(f"the online baseline ended with status {online.returncode}")
    return report(options, console, summary, ends, [first, again, steady])


def report(
    options: Options, console: Any, summary: dict, ends: dict[str, dict], followers: list[Follower]
) -> int:
    """Prints the table; 0 when the digests agree and enough versions followed the restart."""
    online = read_json(pathlib.Path(options.folder) / "online" / "summary.json")
    made = {x["version"]: x["made_at"] for x in trainer_lines(options)}
    delays = sorted(d for f in followers for d in delays_of(f, made))
    followed = summary["versions"] - caught_up_at(followers[1], made)
    table = rich.table.Table(title=f"{options.dataset}, LeNet5", box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_row("trainer", f"version {summary['versions']}", summary["digest"])
    for name, end in ends.items():
        table.add_row(name, f"version {end['version']}", end["digest"])
    equal = all(end["digest"] == summary["digest"] for end in ends.values())
    table.add_row("full digests", "", "equal" if equal else "[bold red]DIFFERENT")
    table.add_row("after the kill", "caught up, then", f"{followed} versions followed")
    table.add_row("prequential accuracy", "deployed", f"{summary['accuracy']:.4f}")
    table.add_row("", "frozen", f"{summary['frozen_accuracy']:.4f}")
    table.add_row("", "online only", f"{online['accuracy']:.4f}")
    per_update = summary["bytes_sent"] / summary["versions"]
    table.add_row("bytes sent", "in all", f"{summary['bytes_sent']:,}")
    table.add_row(
        "",
        "per update",
        f"{per_update:,.0f}, the dense model has {summary['dense_bytes']:,} "
        f"({summary['dense_bytes'] / per_update:.0f} times more)",
    )
    table.add_row("created to served", "median", f"{1e3 * statistics.median(delays):.1f} ms")
    p99 = delays[int(0.99 * (len(delays) - 1))]
    table.add_row("", "99th percentile", f"{1e3 * p99:.1f} ms, of {len(delays)}")
    console.print(table)
    if followed < FOLLOW_AFTER_RESTART:
        raise DemoError(f"only {followed} versions followed the restart; a slow machine?")
    return 0 if equal else 1


def train_command(options: Options, strategy: str, *, log: bool) -> list[str]:
    """The trainer's command line; the online baseline takes the stream at once, unpublished."""
    words = ["train", "--dataset", options.dataset, "--strategy", strategy]
    words += ["--seed", str(options.seed)]
    words += ["--data-dir", options.data_dir] if options.data_dir else []
    if log:
        words += ["--log", f"{options.folder}/log", *SETTINGS[options.dataset]]
    return [*words, "--run", f"{options.folder}/{'trainer' if log else strategy}"]


def start(words: list[str]) -> "subprocess.Popen[bytes]":
    """A cdl-jax command as a process of its own."""
    command = [sys.executable, "-m", "cdl_jax.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def wait_for(done: Any, alive: Any, what: str) -> None:
    """Waits until `done()`, for as long as `alive` runs (or, without one, for PATIENCE)."""
    end = time.monotonic() + PATIENCE
    while not done():
        if alive is not None and alive.poll() is not None:
            raise DemoError(f"the trainer ended with status {alive.returncode} before {what}")
        if alive is None and time.monotonic() > end:
            raise DemoError(f"no replica reached {what} within {PATIENCE:.0f} s")
        time.sleep(0.05)


def versions_of(options: Options) -> int:
    """Versions that the run will make."""
    samples, trigger = {"digits": (1397, 4), "mnist": (50_000, 8)}[options.dataset]
    return -(-samples // trigger)


def trainer_lines(options: Options) -> list[dict[str, Any]]:
    """The trainer's record of each version."""
    return read_lines(pathlib.Path(options.folder) / "trainer" / "metrics.jsonl")


def delays_of(follower: Follower, made: dict[int, float]) -> list[float]:
    """Seconds from creation to serving, of the versions made while the replica followed."""
    lines = follower.lines()
    since = lines[0]["served_at"] if lines else 0.0
    return [x["served_at"] - made[x["version"]] for x in lines if made[x["version"]] >= since]


def caught_up_at(follower: Follower, made: dict[int, float]) -> int:
    """The first version that a restarted replica served and that was made after its start."""
    lines = follower.lines()
    since = lines[0]["served_at"]
    return min((x["version"] for x in lines if made[x["version"]] >= since), default=max(made))


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Whole lines of a file of JSON lines; none where the file is not there yet."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(path.read_text())


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
