"""The function that a server calls, and what it takes."""

import dataclasses

import numpy as np

from cdl_jax.deploy.gate import PredictFn
from cdl_jax.deploy.log import Manifest
from cdl_jax.errors import ConfigError
from cdl_jax.imports import imported


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model's function and the form of its inputs.

    Attributes:
      predict_fn: `(params, model_state, inputs) -> outputs`, one row a sample.
      shape, dtype: of one sample.
    """

    predict_fn: PredictFn
    shape: tuple[int, ...]
    dtype: np.dtype


def built_in(manifest: Manifest) -> Predictor:
    """For a log that `cdl-jax train` wrote.

    Raises:
      ConfigError: when the log's first record names no model of this package.
    """
    name, dataset = manifest.config.get("model"), manifest.config.get("dataset")
    try:
        import jax

        from cdl_jax.data import DATASETS
        from cdl_jax.models import MODELS, classifier, create_model
        from cdl_jax.models.own import on_inputs
    except ImportError as error:
        raise ConfigError(
            f"this model needs more: pip install 'cdl_jax[train]' ({error})"
        ) from error
    inputs = manifest.config.get("inputs", {})
    if name in MODELS and "field" in inputs:
        dtype, shape = inputs["fields"][inputs["field"]]
        predict_fn = jax.jit(on_inputs(name, inputs).predict_fn)
        return Predictor(predict_fn, tuple(shape), np.dtype(dtype))
    if name not in MODELS or dataset not in DATASETS:
        raise ConfigError(
            "the log's first record names no model of this package; give "
            "--predict MODULE:FUNCTION, --input-shape and --input-dtype"
        )
    kind = DATASETS[dataset]
    model = classifier(create_model(name), (kind.mean, kind.std))
    shape = (28, 28, 1) if len(kind.mean) == 1 else (32, 32, 3)
    return Predictor(jax.jit(model.predict_fn), shape, np.dtype(np.uint8))


def by_name(name: str, shape: tuple[int, ...], dtype: str) -> Predictor:
    """From `MODULE:FUNCTION`, which may be jitted or plain NumPy.

    Raises:
      ConfigError: when there is no such function, shape or dtype.
    """
    found = imported(name)
    try:
        kind = np.dtype(dtype)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"cannot serve {name} with inputs of {dtype}: {error}") from error
    if kind.kind not in "biuf" or min(shape, default=1) < 1:
        raise ConfigError(
            f"inputs of {name} are {dtype}{list(shape)}; give sizes from 1 and a dtype of numbers"
        )
    return Predictor(found, shape, kind)
