"""Updates of real models, a few steps into their streams, for the wire's benchmark."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cdl_jax
from cdl_jax.core.layout import SparseUpdate, TreeSpec
from cdl_jax.core.tree import tree_spec
from cdl_jax.data import ImageData, load
from cdl_jax.models import classifier, create_model

DATASETS = {"lenet5": "mnist", "resnet18": "cifar10"}
DENSE_STEPS = {"lenet5": 400, "resnet18": 80}
SPARSE_STEPS, PAST, TRIGGER, BATCH = 20, 10_000, 8, 128


class Real(NamedTuple):
    """An update and the tree that it is for."""

    density: float
    update: SparseUpdate
    spec: TreeSpec


def real_updates(name: str, densities: tuple[float, ...]) -> list[Real]:
    """The 20th sparse update behind dense steps, per tensor, Adam with AMSGrad, batch 128."""
    data = load(DATASETS[name])
    model = classifier(create_model(name, data.classes), (data.mean, data.std))
    params, model_state = jax.jit(model.init_fn)(jax.random.key(0), jnp.asarray(data.images[:1]))
    tx = optax.amsgrad(1e-3)
    start = params, model_state, tx.init(params)
    start = dense_steps(model, tx, data, start, DENSE_STEPS[name])
    return [sparse_steps(model, tx, data, start, density) for density in densities]


def dense_steps(model: Any, tx: Any, data: ImageData, start: Any, count: int) -> Any:
    """Params, model state and optimizer state after so many plain steps."""
    key, rng = jax.random.key(1), np.random.default_rng(0)

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        params, model_state, opt_state = state
        grads, (model_state, _) = jax.grad(model.loss_fn, has_aux=True)(
            params, model_state, batch, key
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state

    for _ in range(count):
        start = step(start, data.batch(rng.integers(0, PAST, BATCH)))
    return start


def sparse_steps(model: Any, tx: Any, data: ImageData, start: Any, density: float) -> Real:
    """The last update of a short stream."""
    params, model_state, opt_state = start
    chain = optax.chain(tx, cdl_jax.sparsify_top_k(density))
    state = cdl_jax.init_state(params, chain, model_state=model_state)
    own = jax.tree.map(jnp.copy, opt_state)
    state = state._replace(opt_state=(own, *state.opt_state[1:]))
    step, rng, info = cdl_jax.make_step(model.loss_fn, chain), np.random.default_rng(1), None
    for turn in range(SPARSE_STEPS):
        first = PAST + TRIGGER * turn
        new = data.batch(np.arange(first, first + TRIGGER))
        state, info = step(state, data.batch(rng.integers(0, first, BATCH - TRIGGER)), new)
    assert info is not None
    return Real(density, jax.device_get(info.update), tree_spec(cdl_jax.deployed(state)))
