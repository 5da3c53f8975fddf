"""The built-in models on data of one's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.models.classifier import Classifier, classifier
from cdl_jax.models.mlp import MLP


def on_inputs(name: str, inputs: Mapping[str, Any]) -> Classifier:
    """A classifier of `MODELS` for samples of a form that is known by its facts.

    Args:
      name: of the model.
      inputs: "field" that it takes, "classes", "mean" and "std" per channel or feature; in units
        of [0, 1] for images.
    """
    from cdl_jax.models import create_model

    mean, std = tuple(inputs["mean"]), tuple(inputs["std"])
    if name == "mlp":
        return classifier(MLP(inputs["classes"], mean=mean, std=std), None, inputs["field"])
    return classifier(create_model(name, inputs["classes"]), (mean, std), inputs["field"])


def scales(name: str, some: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of samples [n, ...] as `on_inputs` takes them."""
    unit = 255 if name != "mlp" and some.dtype == np.uint8 else 1
    axes = tuple(range(some.ndim - 1)) if name != "mlp" else (0,)
    values = some.astype(np.float64) / unit
    std = values.std(axes)
    return {
        "mean": np.ravel(values.mean(axes)).astype(np.float32).tolist(),
        "std": np.ravel(np.where(std > 1e-6, std, 1.0)).astype(np.float32).tolist(),
    }
