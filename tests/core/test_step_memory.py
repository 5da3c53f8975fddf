"""A step holds one state and one update of it: no array as large as the parameters is copied."""

import re

import jax.numpy as jnp
import optax
import pytest

import cdl_jax
from cdl_jax.native import available
from tests.core.helpers import chained, sparsifier

SHAPES = {"a": (1000, 500), "b": (3, 3, 256, 256), "c": (200_000,)}
ENTRIES = 500_000 + 589_824 + 200_000


def loss_fn(params, model_state, batch, key):
    loss = sum(jnp.sum(jnp.tanh(p) * batch) for p in params.values())
    return loss, (model_state, {})


@pytest.mark.skipif(not available(), reason="XLA's own forms copy a leaf where they reshape it")
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_the_step_copies_no_parameter_sized_array(scope):
    tx = chained(optax.amsgrad(1e-3), sparsifier(cdl_jax.top_k(1e-3, scope=scope)))
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    state = cdl_jax.init_state(params, tx)
    compiled = cdl_jax.make_step(loss_fn, tx).lower(state, None, jnp.ones(())).compile()
    sizes = "|".join(",".join(map(str, shape)) for shape in SHAPES.values())
    assert not re.findall(rf"\[({sizes})\]\S* copy\(", compiled.as_text())
    memory = compiled.memory_analysis()
    # The loss's tanh, the gradients, the optimizer's update; the state itself is donated.
    assert memory.temp_size_in_bytes < 3.1 * 4 * ENTRIES
    assert memory.alias_size_in_bytes > 5 * 4 * ENTRIES
