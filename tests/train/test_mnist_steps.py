"""The paper's MNIST step, on real samples: how much of the model changes."""

import os

import jax
import numpy as np
import optax
import pytest

import cdl_jax
from cdl_jax.core import tree as trees
from cdl_jax.data import UniformHistory, load
from cdl_jax.models import classifier, create_model


@pytest.fixture(scope="module")
def data():
    if "TFDS_DATA_DIR" in os.environ:
        return load("mnist", split="test")
    return load("digits")


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_at_most_a_thousandth_of_each_tensor_changes_at_any_step(data, scope):
    model = classifier(create_model("lenet5"), (data.mean, data.std))
    params, _ = model.init_fn(jax.random.key(0), data.images[:1])
    tx = optax.chain(optax.amsgrad(1e-3), cdl_jax.sparsify_top_k(1e-3, scope=scope))
    with jax.numpy_dtype_promotion("standard"):
        state, step = cdl_jax.init_state(params, tx), cdl_jax.make_step(model.loss_fn, tx)
        before, seen = bits(state), set()
        for turn in range(40):
            new = data.batch(slice(1000 + 8 * turn, 1008 + 8 * turn))
            history = data.batch(UniformHistory(0).draw(turn, 1000 + 8 * turn, 120))
            state, info = step(state, history, new)
            after = bits(state)
            changed = {n: int((before[n] != after[n]).sum()) for n in after}
            limit = {n: max(1, x.size // 1000) for n, x in after.items()}
            if scope == "tensor":
                assert all(changed[n] <= limit[n] for n in changed), (turn, changed)
            else:
                assert sum(changed.values()) <= 61, (turn, changed)
            seen |= {n for n in changed if changed[n]}
            before = after
            assert cdl_jax.tree_digest(cdl_jax.deployed(state)) == "".join(
                f"{int(x):08x}" for x in info.update.digest
            )
    assert len(seen) == 10 or scope == "global"  # every tensor learns


def bits(state):
    flat = trees.flatten(state.params)
    pairs = zip(flat.names, flat.leaves, strict=True)
    return {name: np.array(leaf).reshape(-1).view(np.uint32) for name, leaf in pairs}
