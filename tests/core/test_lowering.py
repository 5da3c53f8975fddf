"""Step, selection and application lower for other platforms, no device needed."""

import jax
import jax.numpy as jnp
import optax
import pytest

import cdl_jax
from cdl_jax.core import select, update
from tests.core.helpers import chained, sparsifier

PLATFORMS = ["cpu", "cuda", "tpu"]
COMPRESSORS = {
    "top_k": cdl_jax.top_k(0.1),
    "global": cdl_jax.top_k(0.1, scope="global"),
    "random_k": cdl_jax.random_k(0.1),
    "quantize": cdl_jax.quantize(8),
}


def lowers(function, platform, *args):
    text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    # A host callback or a CPU kernel would lower, and fail on the device.
    if platform != "cpu":
        assert "callback" not in text
        assert "cdl_jax_" not in text
    return text


def loss_fn(params, model_state, batch, key):
    loss = sum(jnp.mean((p.astype("float32") - batch.mean()) ** 2) for p in params.values())
    return loss, ({"mean": model_state["mean"] + batch.mean()}, {})


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_step_and_apply_lower(compressor, platform):
    params = {"w": jnp.ones((8, 8)), "h": jnp.ones(40, jnp.bfloat16)}
    tx = chained(optax.amsgrad(1e-3), sparsifier(COMPRESSORS[compressor]))
    state = cdl_jax.init_state(params, tx, model_state={"mean": jnp.zeros(5)})
    step = lambda s, b: cdl_jax.proactive_step(s, None, b, loss_fn, tx)
    lowers(step, platform, state, jnp.ones(3))
    change = jax.eval_shape(step, state, jnp.ones(3))[1].update
    deployed = cdl_jax.deployed(state)
    lowers(cdl_jax.apply_update, platform, deployed, change)
    for form in (update.updated_digest, update.apply_with_digest):
        lowers(form, platform, deployed, change, jnp.zeros(4, jnp.uint32))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("global_scope", [False, True])
def test_selection_lowers(platform, global_scope):
    leaves = [jnp.ones(30), jnp.ones(select.WORTH_A_THRESHOLD)]
    ks = (8,) if global_scope else (3, 5)
    top = lambda u, r: select.error_feedback_top_k(u, r, ks, global_scope=global_scope)
    lowers(top, platform, leaves, leaves)
    draw = lambda u, r, k: select.error_feedback_random_k(
        u, r, ks, global_scope=global_scope, key=k
    )
    lowers(draw, platform, leaves, leaves, jax.random.key(0))
