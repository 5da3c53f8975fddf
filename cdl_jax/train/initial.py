"""Training from scratch: of the initial model, and of each full retraining."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdl_jax.core.step import LossFn
from cdl_jax.errors import TrainingError
from cdl_jax.train.checkpoint import Checkpoints

FitStep = Callable[["Trained", Any, jax.Array, jax.Array], tuple["Trained", jax.Array]]


class Trained(NamedTuple):
    """What training from scratch leaves; all pytrees of arrays."""

    params: Any
    model_state: Any
    opt_state: Any


def fit_step(loss_fn: LossFn, tx: optax.GradientTransformation, sharding: Any = None) -> FitStep:
    """A plain dense step, compiled: `(state, batch, turn, key) -> (state, loss)`.

    Over a mesh, what it returns is of this sharding.
    """

    @functools.partial(jax.jit, out_shardings=sharding)
    def step(state: Trained, batch: Any, turn: jax.Array, key: jax.Array) -> Any:
        own = jax.random.fold_in(key, turn)
        (loss, (model_state, _)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.model_state, batch, own
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return Trained(params, model_state, opt_state), loss

    return step


def fit(
    start: Trained,
    take: Callable[[np.ndarray], Any],
    count: int,
    step: FitStep,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Trained:
    """Trains on the first `count` samples, shuffled anew each epoch, the last batch short.

    Args:
      start: untrained.
      take: gives the batch of samples at int64 positions.
      count: samples.
      step: from `fit_step`.
      epochs, batch_size, seed: of the training.
      on_step: called after each step.

    Raises:
      TrainingError: when the loss is not finite at the end of an epoch.
    """
    key = jax.random.fold_in(jax.random.key(seed), 1)
    state, turn, loss = start, 0, jnp.zeros(())
    for epoch in range(epochs):
        for index in _batches(count, batch_size, seed, epoch):
            state, loss = step(state, take(index), jax.device_put(np.int32(turn)), key)
            turn += 1
            on_step()
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {float(loss)} after epoch {epoch + 1} of training from scratch; "
                "lower --learning-rate"
            )
    return state


def shared(
    folder: str | None, facts: dict[str, Any], like: Any, make: Callable[[], Trained]
) -> Trained:
    """What `make` gives, or gave to an earlier run of the same facts.

    Args:
      folder: keeps a model for each set of facts; None keeps none.
      facts: what the bits depend on, in JSON's types.
      like: shapes and dtypes of the outcome.
      make: does the training.
    """
    if folder is None:
        return make()
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    kept = Checkpoints(pathlib.Path(folder) / name, keep=1)
    try:
        saved = kept.newest()
        if saved is not None:
            return saved.restore("", like)
        trained = make()
        kept.save(0, trained._asdict(), facts)
        return trained
    finally:
        kept.close()


def _batches(count: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]
