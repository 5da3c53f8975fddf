"""Where a run's numbers go besides its own metrics.jsonl."""

import importlib
import os
import pathlib
from typing import Any, Protocol

from cdl_jax.errors import ConfigError


class Tracker(Protocol):
    """Takes the numbers of each version."""

    def log(self, version: int, numbers: dict[str, float]) -> None:
        """The numbers of a version, by name."""
        ...

    def close(self) -> None:
        """Writes out what is still in memory."""
        ...


class TensorBoard:
    """Event files in the run's folder, by tensorboardX."""

    def __init__(self, folder: pathlib.Path, config: dict[str, Any]):
        module = importlib.import_module("tensorboardX")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in config.items()))

    def log(self, version: int, numbers: dict[str, float]) -> None:
        """See `Tracker`."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, version)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its environment variables say where, and whether offline."""

    def __init__(self, folder: pathlib.Path, config: dict[str, Any]):
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(project="cdl_jax", name=folder.name, dir=str(folder), config=config)

    def log(self, version: int, numbers: dict[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(numbers, step=version)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI says where, by default the run's folder."""

    def __init__(self, folder: pathlib.Path, config: dict[str, Any]):
        mlflow = importlib.import_module("mlflow")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder.absolute()}/mlflow.db")
        self._mlflow = mlflow
        mlflow.start_run(run_name=folder.name)
        mlflow.log_params(config)

    def log(self, version: int, numbers: dict[str, float]) -> None:
        """See `Tracker`."""
        self._mlflow.log_metrics(numbers, step=version)

    def close(self) -> None:
        """See `Tracker`."""
        self._mlflow.end_run()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def tracker(name: str, folder: pathlib.Path, config: dict[str, Any]) -> Tracker:
    """A tracker by its name.

    Args:
      name: one of `TRACKERS`.
      folder: the run's.
      config: the run's settings.

    Raises:
      ConfigError: when its package is not installed.
    """
    try:
        return TRACKERS[name](folder, config)
    except ImportError as error:
        raise ConfigError(f"track {name} needs more: pip install 'cdl_jax[{name}]'") from error


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """What of a line of metrics can be drawn: its numbers, those inside by a path."""
    out = {}
    for name, value in record.items():
        if isinstance(value, dict):
            out |= {f"{name}/{inner}": x for inner, x in numbers(value).items()}
        elif isinstance(value, (bool, int, float)) and name != "version":
            out[name] = float(value)
    return out
