"""The train steps that are measured, and their batches."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import cdl_jax
from cdl_jax.models import classifier, create_model

SHAPES = {"lenet5": (28, 28, 1)}


def make_batch(model: str, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images [B, H, W, C] and labels [B]."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, *SHAPES.get(model, (32, 32, 3))))
    return images.astype(np.float32), rng.integers(0, 10, batch_size).astype(np.int32)


def parameters(model: str) -> int:
    """Number of parameters."""
    sample = make_batch(model, 1)[0]
    shapes = jax.eval_shape(classifier(create_model(model)).init_fn, jax.random.key(0), sample)[0]
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def jax_step(model: str, images: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """A function that runs one JAX step and waits for it."""
    init_fn, loss_fn, _ = classifier(create_model(model))
    tx = optax.amsgrad(1e-3)

    def step(state, batch, key):
        params, model_state, opt_state = state
        grads, (model_state, _) = jax.grad(loss_fn, has_aux=True)(params, model_state, batch, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state

    key = jax.random.key(0)
    params, model_state = jax.jit(init_fn)(key, images)
    state = (params, model_state, jax.jit(tx.init)(params))
    batch = jax.device_put({"image": images, "label": labels})
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, key).compile()

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, batch, key))

    return run


def sparse_step(model: str, batch: dict[str, Any], density: float, scope: Any) -> Callable:
    """A function that runs one sparse step and waits for it."""
    init_fn, loss_fn, _ = classifier(create_model(model))
    tx = optax.chain(optax.amsgrad(1e-3), cdl_jax.sparsify_top_k(density, scope=scope))
    params, model_state = jax.jit(init_fn)(jax.random.key(0), batch["image"])
    state = cdl_jax.init_state(params, tx, model_state=model_state)
    step = cdl_jax.make_step(loss_fn, tx)

    def run() -> None:
        nonlocal state
        state, info = step(state, None, batch)
        jax.block_until_ready((state, info))

    return run
