"""Training of the initial model, before there is anything to deploy."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdl_jax.core.step import LossFn
from cdl_jax.data import ImageData
from cdl_jax.errors import TrainingError


class Trained(NamedTuple):
    """What initial training leaves; all pytrees of arrays."""

    params: Any
    model_state: Any
    opt_state: Any


def fit(
    start: Trained,
    data: ImageData,
    count: int,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Trained:
    """Trains on the first `count` samples, shuffled anew each epoch, the last batch short.

    Raises:
      TrainingError: when the loss is not finite at the end of an epoch.
    """
    key = jax.random.fold_in(jax.random.key(seed), 1)

    @jax.jit
    def step(state: Trained, batch: Any, turn: jax.Array) -> tuple[Trained, jax.Array]:
        own = jax.random.fold_in(key, turn)
        (loss, (model_state, _)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.model_state, batch, own
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return Trained(params, model_state, opt_state), loss

    state, turn, loss = start, 0, jnp.zeros(())
    for epoch in range(epochs):
        for index in _batches(count, batch_size, seed, epoch):
            state, loss = step(state, data.batch(index), jnp.asarray(turn, jnp.int32))
            turn += 1
            on_step()
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {float(loss)} after epoch {epoch + 1} of initial training; lower "
                "--learning-rate"
            )
    return state


def _batches(count: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]
