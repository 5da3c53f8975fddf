"""What a run trains on, and the model that fits it."""

import pathlib
import tempfile
from typing import Any

import numpy as np

from cdl_jax.data import ImageData, load, scenario
from cdl_jax.data.files import KINDS, load_files
from cdl_jax.data.live import LIVE, LiveData, Source, from_function, imported
from cdl_jax.data.redis_source import from_redis
from cdl_jax.data.samples import LABEL, ArrayData, Samples, facts
from cdl_jax.data.sources import TFDS, load_tfds
from cdl_jax.data.spool import Spool
from cdl_jax.errors import ConfigError
from cdl_jax.models import classifier, create_model
from cdl_jax.models.own import on_inputs, scales
from cdl_jax.train.config import OWN, TrainConfig
from cdl_jax.train.scoring import Metrics


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
    folder = tempfile.mkdtemp(prefix="cdl_jax-") if config.run is None else config.run
    spool = Spool(pathlib.Path(folder) / "samples", name)
    data = LiveData(
        name, source, spool, stall_seconds=config.stall_seconds, on_stall=config.on_stall
    )
    data.classes = config.classes
    try:
        data.first(config.initial_samples)
    except BaseException:
        data.close()
        raise
    return data


def described(config: TrainConfig, data: Samples) -> dict[str, Any]:
    """The settings and, for data of one's own, the facts that the bits of the log depend on."""
    settings, kind = config.bits_depend_on(), config.dataset.partition(":")[0]
    if kind not in OWN:
        return settings
    inputs = facts(data, config.initial_samples)
    fields = [name for name in inputs["fields"] if name != LABEL]
    if ":" not in config.model:
        if len(fields) != 1 or not data.classes:
            raise ConfigError(
                f"model {config.model} takes one field and integer labels, but {data.name} has "
                f"{', '.join(inputs['fields'])}; give --model MODULE:FACTORY"
            )
        some = data.batch(np.arange(min(config.initial_samples, 10_000)))[fields[0]]
        inputs |= {"field": fields[0], **scales(config.model, some)}
    return {**settings, "dataset": kind, "inputs": inputs}


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
