"""A Flax NNX model trains through the same functions: what `nnx.split` gives is a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cdl_jax
from tests.core.helpers import NumpyReplica, chained, sparsifier

nnx = pytest.importorskip("flax.nnx")


def test_an_nnx_model_trains_and_replays_exactly():
    with jax.numpy_dtype_promotion("standard"):
        model = nnx.Sequential(
            nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(1)), nnx.relu,
            nnx.Linear(8, 1, rngs=nnx.Rngs(2)),
        )  # fmt: skip
        graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

        def loss_fn(params, model_state, batch, key):
            net = nnx.merge(graph, params, model_state, copy=True)
            loss = jnp.mean((net(batch) - 1) ** 2)
            return loss, (nnx.split(net, nnx.Param, nnx.BatchStat)[2], {})

        tx = chained(optax.amsgrad(1e-2), sparsifier(cdl_jax.top_k(0.1)))
        state = cdl_jax.init_state(params, tx, model_state=stats)
        step = cdl_jax.make_step(loss_fn, tx)
        replica = NumpyReplica(cdl_jax.deployed(state))
        losses = []
        for seed in range(12):
            batch = jnp.asarray(np.random.default_rng(seed).normal(size=(16, 4)), "float32")
            state, info = step(state, None, batch)
            losses.append(float(info.loss))
            replica.apply(info.update)
            replica.assert_equals(cdl_jax.deployed(state))
        assert losses[-1] < losses[0]
        assert step._cache_size() == 1
        served = cdl_jax.deployed(state)
        out = nnx.merge(graph, served["params"], served["model_state"], copy=True)(batch)
        assert out.shape == (16, 1)
