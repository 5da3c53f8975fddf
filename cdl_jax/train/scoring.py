"""Scores of the deployed model on samples it has not been trained on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdl_jax.data.samples import LABEL, inputs_of
from cdl_jax.errors import ConfigError
from cdl_jax.models import Classifier
from cdl_jax.train.bundle import bundle

Metrics = Callable[[Any, Any], dict[str, Any]]  # (outputs, batch) -> number[samples] by name
AT_ONCE = 1000  # samples that are scored by one call; where more arrive, so many at a time


class Scores(NamedTuple):
    """Of some samples, an entry for each."""

    right: Any  # bool[samples]
    loss: Any  # float32[samples]
    metrics: dict[str, Any]  # the user's own, number[samples] by name; the non-finite are left out


Score = Callable[[Any, Any], Scores]  # (deployed tree, batch) -> scores


def score_fn(model: Classifier, metrics: Metrics | None = None) -> Score:
    """`(deployed tree, batch) -> scores`: whether each sample is right, its loss, and more. Pure.

    A model of the user's own says it by `score_fn(outputs, batch) -> (right, loss)`, a
    classifier's are as usual.

    Args:
      model: gives the outputs.
      metrics: what else is to be known of each sample.

    Raises:
      ConfigError: when called, where metrics are not a number for each sample, by name.
    """
    scores = getattr(model, "score_fn", _of_classes)

    def score(tree: Any, batch: Any) -> Scores:
        outputs = model.predict_fn(tree["params"], tree["model_state"], inputs_of(batch))
        more = {} if metrics is None else _checked(metrics(outputs, batch), len(batch[LABEL]))
        right, loss = scores(outputs, batch)
        if jnp.issubdtype(jnp.result_type(right), jnp.floating):
            right = jnp.where(jnp.isfinite(right), right, 0)  # no score is none right
        return Scores(right, loss, more)

    return score


def _checked(metrics: Any, samples: int) -> dict[str, Any]:
    if not isinstance(metrics, dict):
        raise ConfigError(f"metrics gave {type(metrics).__name__}; give a dict of arrays by name")
    for name, values in metrics.items():
        if jnp.shape(values) != (samples,):
            raise ConfigError(
                f"metrics gave {name} the shape {jnp.shape(values)}; give a number for each "
                f"sample, ({samples},)"
            )
    return metrics


def _of_classes(logits: Any, batch: Any) -> tuple[Any, Any]:
    labels = batch[LABEL]
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.argmax(logits, axis=-1) == labels, loss


def scorer(
    model: Classifier, sharding: Any = None, metrics: Metrics | None = None
) -> Callable[[Any, Any], Callable[[], Scores]]:
    """`score_fn` compiled; very many samples go through it in pieces.

    The scores, NumPy arrays, are waited for when they are asked for.
    """
    score = score_fn(model, metrics)
    one_call = jax.jit(lambda tree, batch: bundle(score(tree, batch)), out_shardings=sharding)

    def in_pieces(tree: Any, batch: Any) -> Callable[[], Scores]:
        count = len(batch[LABEL])
        if count <= AT_ONCE:
            return one_call(tree, batch).open
        cuts = [(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]
        parts = [one_call(tree, _part(batch, *cut)) for cut in cuts]
        return lambda: jax.tree.map(lambda *x: np.concatenate(x), *(part.open() for part in parts))

    return in_pieces


def _part(batch: Any, first: int, end: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, first, end), batch)
