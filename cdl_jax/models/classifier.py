"""From a Linen module to the three pure functions that training and serving call."""

import functools
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from cdl_jax.data.samples import inputs_of

Tree = Any  # nested dicts of arrays
Inputs = Any  # an array, or a dict of arrays by field
Metrics = dict[str, Array]


class InitFn(Protocol):
    def __call__(self, key: Array, sample_input: Inputs) -> tuple[Tree, Tree]: ...


class LossFn(Protocol):
    def __call__(
        self, params: Tree, model_state: Tree, batch: dict[str, Array], key: Array
    ) -> tuple[Array, tuple[Tree, Metrics]]: ...


class PredictFn(Protocol):
    def __call__(self, params: Tree, model_state: Tree, inputs: Inputs) -> Array: ...


class Classifier(NamedTuple):
    """The functions of a classifier; see `classifier`."""

    init_fn: InitFn
    loss_fn: LossFn
    predict_fn: PredictFn


def classifier(
    module: nn.Module, normalize: tuple[Any, Any] | None = None, field: str | None = "image"
) -> Classifier:
    """Makes `init_fn`, `loss_fn` and `predict_fn` of a classifier, of images or other fields.

    Args:
      module: maps float32 images [B, H, W, C] to logits [B, classes]; called with `train`.
      normalize: mean and standard deviation, numbers or one per channel, in units of [0, 1].
        uint8 images become (image / 255 - mean) / std; float images are taken as they are.
      field: of a batch that the module takes. None: all but the label, as a dict by field where
        there are several.

    Returns:
      `init_fn(key, sample_input) -> (params, model_state)`; `loss_fn(params, model_state,
      batch, key) -> (loss, (model_state, metrics))`, the mean softmax cross entropy of a batch
      {"image": [B, H, W, C] float32 or uint8, "label": int32[B]} with "accuracy" in metrics;
      `predict_fn(params, model_state, inputs) -> logits`. model_state is `batch_stats`, {} for
      a module that has none.
    """
    prepare = _normalizer(normalize)

    def init_fn(key: Array, sample_input: Inputs) -> tuple[Tree, Tree]:
        # Compiled: the forward pass, of which only the shapes matter, falls away.
        start = jax.jit(functools.partial(module.init, train=False))
        variables: Any = start(key, prepare(sample_input))
        return variables["params"], variables.get("batch_stats", {})

    def loss_fn(
        params: Tree, model_state: Tree, batch: dict[str, Array], key: Array
    ) -> tuple[Array, tuple[Tree, Metrics]]:
        variables = {"params": params, "batch_stats": model_state}
        logits, updates = module.apply(
            variables,
            prepare(inputs_of(batch) if field is None else batch[field]),
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        labels = batch["label"]
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
        return loss, (updates.get("batch_stats", {}), {"accuracy": accuracy})

    def predict_fn(params: Tree, model_state: Tree, inputs: Inputs) -> Array:
        variables = {"params": params, "batch_stats": model_state}
        logits: Any = module.apply(variables, prepare(inputs), train=False)
        return logits

    return Classifier(init_fn, loss_fn, predict_fn)


def _normalizer(normalize: tuple[Any, Any] | None):
    def prepare(images: Inputs) -> Inputs:
        if getattr(images, "dtype", None) != jnp.uint8:
            return images
        if normalize is None:
            raise ValueError(
                "images are uint8 but normalize is None; give classifier(normalize=(mean, std))"
            )
        mean, std = (jnp.asarray(value, jnp.float32) for value in normalize)
        return (images.astype(jnp.float32) / 255 - mean) / std

    return prepare
