"""Where a run's numbers go besides its own metrics.jsonl."""

import importlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from cdl_jax.errors import CheckpointError, ConfigError, masked

_REST = 10  # times as long as a failed call took, until the next one


class Place(NamedTuple):
    """Where a tracker begins, or goes on."""

    folder: pathlib.Path  # the run's
    config: dict[str, Any]  # the run's settings, without passwords
    run_id: str | None = None  # the tracker's own name of the run, from an earlier life
    version: int = 0  # behind which the run goes on


class Tracker(Protocol):
    """Takes the numbers of each version."""

    run_id: str | None  # by which a later life finds this run again
    overwrites: bool  # whether a version may be told again

    def log(self, version: int, numbers: dict[str, float]) -> None:
        """The numbers of a version, by name."""
        ...

    def close(self) -> None:
        """Writes out what is still in memory."""
        ...


class TensorBoard:
    """Event files in the run's folder, by tensorboardX; a life's replaces what it makes again."""

    run_id, overwrites = None, True

    def __init__(self, place: Place):
        module = importlib.import_module("tensorboardX")
        folder = str(place.folder / "tensorboard")
        self._writer = module.SummaryWriter(folder, purge_step=place.version + 1)
        text = "\n".join(f"    {k}: {v}" for k, v in place.config.items())
        self._writer.add_text("config", text)

    def log(self, version: int, numbers: dict[str, float]) -> None:
        """See `Tracker`."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, version)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its environment variables say where, and whether offline."""

    overwrites = False

    def __init__(self, place: Place):
        wandb = importlib.import_module("wandb")
        secret = any(masked(word) != word for word in sys.argv)
        self._run = wandb.init(
            project="cdl_jax", name=place.folder.name, dir=str(place.folder), config=place.config,
            id=place.run_id, resume="allow", allow_val_change=True,
            settings={"x_disable_meta": True} if secret else None,  # it has the command's words
        )  # fmt: skip
        self.run_id = self._run.id

    def log(self, version: int, numbers: dict[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(numbers, step=version)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI says where, by default the run's folder."""

    overwrites = False

    def __init__(self, place: Place):
        mlflow = importlib.import_module("mlflow")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{place.folder.absolute()}/mlflow.db")
        self._mlflow = mlflow
        run = mlflow.start_run(run_id=place.run_id, run_name=place.folder.name)
        self.run_id = run.info.run_id
        if place.run_id is None:  # they cannot be written twice
            mlflow.log_params(place.config)

    def log(self, version: int, numbers: dict[str, float]) -> None:
        """See `Tracker`."""
        self._mlflow.log_metrics(numbers, step=version)

    def close(self) -> None:
        """See `Tracker`."""
        self._mlflow.end_run()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


def check_installed(names: Sequence[str]) -> None:
    """Whether these trackers could begin.

    Raises:
      ConfigError: when a package is not installed.
    """
    for name in names:
        try:
            importlib.import_module(_PACKAGES[name])
        except ImportError as error:
            raise ConfigError(f"track {name} needs more: pip install 'cdl_jax[{name}]'") from error


def tracker(name: str, place: Place) -> Tracker:
    """A tracker by its name, one of `TRACKERS`.

    Raises:
      ConfigError: when it cannot begin.
    """
    try:
        return TRACKERS[name](place)
    except Exception as error:  # theirs have no base in common
        raise ConfigError(
            f"track {name} cannot begin: {_sentence(error)}; mend that, or leave {name} out of "
            "--track"
        ) from error


class Trackers:
    """A run's trackers. What one does not take is said once; the run goes on.

    trackers.json in the run's folder has the trackers' own names of the run, and up to which
    version they were told by the lives before: the metrics, which each life cuts, do not know.
    """

    def __init__(self, folder: pathlib.Path):
        self._file = folder / "trackers.json"
        self._open: dict[str, Tracker] = {}
        self._told: dict[str, int] = {}
        self._rests_until: dict[str, float] = {}  # those that failed once

    def forget(self) -> None:
        """The run starts anew."""
        self._file.unlink(missing_ok=True)

    def begin(self, names: Sequence[str], place: Place, newest: int) -> None:
        """Begins trackers, or goes on where the last life had told them up to `newest`.

        Raises:
          ConfigError: see `tracker`.
          CheckpointError: when trackers.json was damaged.
        """
        known = self._known()
        for name in names:
            its = known.get(name)
            self._told[name] = place.version if its is None else max(its["told"], newest)
            run_id = None if its is None else its["id"]
            self._open[name] = tracker(name, place._replace(run_id=run_id))
            known[name] = {"id": self._open[name].run_id, "told": self._told[name]}
            draft = self._file.with_name(f".{self._file.name}.part")
            draft.write_text(json.dumps(known) + "\n")
            draft.rename(self._file)

    def _known(self) -> dict[str, dict[str, Any]]:
        """The trackers of the lives before."""
        try:
            known = json.loads(self._file.read_text()) if self._file.exists() else {}
            return {
                name: {"id": its["id"], "told": int(its["told"])} for name, its in known.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{self._file} does not say which runs the trackers made: it was changed; remove "
                "it, and they begin others"
            ) from error

    def log(self, record: dict[str, Any]) -> None:
        """Tells a line of metrics to those that were not told it in an earlier life."""
        if not self._open:
            return
        version, values = record["version"], numbers(record)
        for name, one in self._open.items():
            again = version <= self._told[name] and not one.overwrites
            if not again and time.monotonic() >= self._rests_until.get(name, 0.0):
                self._try(name, f"version {version}", lambda one=one: one.log(version, values))

    def close(self) -> None:
        """Closes them all."""
        for name, one in self._open.items():
            self._try(name, "the end of the run", one.close)

    def _try(self, name: str, what: str, call: Callable[[], None]) -> None:
        begun = time.monotonic()
        try:
            call()
        except Exception as error:
            if name not in self._rests_until:
                print(f"cdl-jax: {name} did not take {what}: {_sentence(error)}; the run goes on, "
                      "and metrics.jsonl has all", file=sys.stderr)  # fmt: skip
            now = time.monotonic()
            self._rests_until[name] = now + _REST * (now - begun)


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """What of a line of metrics can be drawn: its finite numbers, those inside by a path."""
    out = {}
    for name, value in record.items():
        if isinstance(value, dict):
            out |= {f"{name}/{inner}": x for inner, x in numbers(value).items()}
        elif isinstance(value, (bool, int, float)) and name != "version" and math.isfinite(value):
            out[name] = float(value)
    return out


def _sentence(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return masked(first[:300].rstrip("."))
