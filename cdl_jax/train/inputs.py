"""What a run trains on, and the model that fits it."""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.data import ImageData, load, scenario
from cdl_jax.data.files import KINDS, load_files
from cdl_jax.data.fingerprint import facts
from cdl_jax.data.live import LIVE, LiveData, Source, from_function
from cdl_jax.data.redis_source import from_redis
from cdl_jax.data.samples import LABEL, ArrayData, Samples, check_finite
from cdl_jax.data.sources import TFDS, load_tfds
from cdl_jax.data.spool import Spool
from cdl_jax.errors import ConfigError
from cdl_jax.imports import imported
from cdl_jax.models import classifier, create_model
from cdl_jax.models.own import on_inputs, scales
from cdl_jax.train.config import OWN, TrainConfig
from cdl_jax.train.scoring import Metrics

_LEAST_SIDE = {"lenet5": 12}  # pixels; the other models take any image
_MOST_CLASSES = 1 << 20


def open_data(config: TrainConfig, source: Source | None = None) -> Samples:
    """The data that a configuration names, or of a source given in Python.

    Raises:
      DataError: when they cannot be read, or a stream ends before the initial training.
      ConfigError: for a data set of an unknown kind.
    """
    kind = config.dataset.partition(":")[0]
    if kind in LIVE:
        return _live(config, source)
    if kind in KINDS and kind != config.dataset:
        data: Samples = load_files(config.dataset)
        if _built_in(config):
            check_finite(data)
    elif kind == TFDS and kind != config.dataset:
        data = load_tfds(config.dataset, data_dir=config.data_dir)
    else:
        data = load(config.dataset, data_dir=config.data_dir)
    if config.initial_samples >= len(data):
        raise ConfigError(
            f"initial_samples is {config.initial_samples}, but {data.name} has {len(data)}: "
            "nothing is left for the stream; give fewer"
        )
    if config.scenario == "none":
        return data
    assert isinstance(data, (ImageData, ArrayData))
    start = config.initial_samples
    stop = None if config.limit is None else start + config.limit
    return scenario(config.scenario, data, start=start, stop=stop, seed=config.seed)


def _live(config: TrainConfig, source: Source | None) -> LiveData:
    if source is not None:
        name = "iterator"
    elif config.dataset.startswith("iterator:"):
        name, source = config.dataset, from_function(config.dataset.partition(":")[2])
    elif config.dataset == "iterator":
        raise ConfigError(
            "dataset is iterator, but there is none: give it in Python, or iterator:MODULE:FUNCTION"
        )
    else:
        name, source = from_redis(config.dataset)
    if not callable(source):
        raise ConfigError(
            f"the source is a {type(source).__name__}; give a function that is called with the "
            "number of samples that are held and the newest one, and gives an iterator"
        )
    folder, cleanup = config.run, lambda: None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="cdl_jax-")
        folder, cleanup = temporary.name, temporary.cleanup
    data = LiveData(
        name, source, Spool(pathlib.Path(folder) / "samples", name), on_close=cleanup,
        stall_seconds=config.stall_seconds, on_stall=config.on_stall, classes=config.classes,
        initial=config.initial_samples, finite=_built_in(config),
    )  # fmt: skip
    try:
        data.first()
    except BaseException:
        data.close()
        raise
    return data


def _built_in(config: TrainConfig) -> bool:
    """Whether the model is of this package; one of the user's may take NaNs for gaps."""
    return ":" not in config.model


def described(config: TrainConfig, data: Samples) -> dict[str, Any]:
    """The settings and, for data of one's own, the facts that the bits of the log depend on."""
    settings, kind = config.bits_depend_on(), config.dataset.partition(":")[0]
    if kind not in OWN:
        return settings
    inputs = facts(data, config.initial_samples)
    if _built_in(config):
        field = _field(config.model, data, inputs["fields"])
        some = data.batch(np.arange(min(config.initial_samples, 10_000)))[field]
        inputs |= {"field": field, **scales(config.model, some)}
    return {**settings, "dataset": kind, "inputs": inputs}


def _field(model: str, data: Samples, forms: Mapping[str, Any]) -> str:
    """The field that a model of this package takes, where it can take the data.

    Raises:
      ConfigError: where it cannot.
    """
    own = "or give --model MODULE:FACTORY"
    if isinstance(data, LiveData):  # what was kept stays
        own += ", with a new --run"
    fields = [name for name in forms if name != LABEL]
    label = np.dtype(forms[LABEL][0]).kind in "iu" and not forms[LABEL][1] if LABEL in forms else 0
    if len(fields) != 1 or not data.classes or not label:
        words = ", ".join(f"{name} {dtype}{shape}" for name, (dtype, shape) in forms.items())
        raise ConfigError(
            f"model {model} takes one field and integer labels from 0, but {data.name} has "
            f"{words}; give these, {own}"
        )
    if data.classes > _MOST_CLASSES:
        raise ConfigError(
            f"{data.name} has labels up to {data.classes - 1}, but model {model} takes up to "
            f"{_MOST_CLASSES - 1}; number the classes from 0, {own}"
        )
    shape, least = forms[fields[0]][1], _LEAST_SIDE.get(model, 1)
    if model != "mlp" and (len(shape) != 3 or min(shape[:2]) < least):
        raise ConfigError(
            f"model {model} takes images [height, width, channels], from {least} pixels a side, "
            f"but {fields[0]} of {data.name} is {shape}; reshape it, or give --model mlp"
        )
    return fields[0]


def model_for(config: TrainConfig, data: Samples) -> Any:
    """`init_fn`, `loss_fn` and `predict_fn`, of this package or of the user's factory.

    Raises:
      ConfigError: when the factory is not there, or gives something else.
    """
    if ":" not in config.model:
        if isinstance(data, ImageData):
            return classifier(create_model(config.model, data.classes), (data.mean, data.std))
        return on_inputs(config.model, described(config, data)["inputs"])
    made = imported(config.model)(data)
    missing = [n for n in ("init_fn", "loss_fn", "predict_fn") if not hasattr(made, n)]
    if missing:
        raise ConfigError(f"{config.model} gave no {', '.join(missing)}; see models.classifier")
    return made


def metrics_for(config: TrainConfig) -> Metrics | None:
    """The user's own metrics; None where there are none.

    Raises:
      ConfigError: when the function is not there.
    """
    return None if config.metrics is None else imported(config.metrics)
