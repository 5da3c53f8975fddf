"""Scores of the deployed model on samples it has not been trained on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cdl_jax.data.samples import LABEL, inputs_of
from cdl_jax.models import Classifier

Scores = tuple[Any, Any]  # right: bool, loss: float32; [samples] each
_AT_ONCE = 500  # samples that are scored by one call, where very many arrive


def score_fn(model: Classifier) -> Callable[[Any, Any], Scores]:
    """`(deployed tree, batch) -> scores`: whether each sample is right, and its loss. Pure.

    A model of the user's own says it by `score_fn(outputs, batch) -> scores`, a classifier's are
    as usual.
    """
    scores = getattr(model, "score_fn", _of_classes)

    def score(tree: Any, batch: Any) -> Scores:
        outputs = model.predict_fn(tree["params"], tree["model_state"], inputs_of(batch))
        return scores(outputs, batch)

    return score


def _of_classes(logits: Any, batch: Any) -> Scores:
    labels = batch[LABEL]
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.argmax(logits, axis=-1) == labels, loss


def scorer(model: Classifier, sharding: Any = None) -> Callable[[Any, Any], Scores]:
    """`score_fn` compiled; very many samples go through it in pieces."""
    one_call = jax.jit(score_fn(model), out_shardings=sharding)

    def in_pieces(tree: Any, batch: Any) -> Scores:
        count = len(jax.tree.leaves(batch)[0])
        if count <= 2 * _AT_ONCE:
            return one_call(tree, batch)
        cuts = [(first, min(first + _AT_ONCE, count)) for first in range(0, count, _AT_ONCE)]
        parts = [one_call(tree, _part(batch, *cut)) for cut in cuts]
        right, loss = zip(*parts, strict=True)
        return jnp.concatenate(right), jnp.concatenate(loss)

    return in_pieces


def _part(batch: Any, first: int, end: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.slice_in_dim(x, first, end), batch)
