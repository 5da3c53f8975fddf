import jax
import numpy as np
import optax
import pytest

import cdl_jax
from tests.core.helpers import chained
from tests.deploy.small import batch, loss_fn, new_state


def test_the_public_surface_is_sorted_and_there():
    assert cdl_jax.__all__ == sorted(cdl_jax.__all__)
    for name in cdl_jax.__all__:
        assert callable(getattr(cdl_jax, name))
        assert name in dir(cdl_jax)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cdl_jax.nothing  # noqa: B018


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_an_update_over_the_wire_leads_to_the_same_bits(scope):
    tx = chained(optax.amsgrad(1e-2), cdl_jax.sparsify_top_k(0.1, scope=scope))
    state, step = new_state(tx), cdl_jax.make_step(loss_fn, tx)
    for turn in range(3):
        before = jax.tree.map(np.array, cdl_jax.deployed(state))
        state, info = step(state, None, batch(turn))
        update = cdl_jax.decode_update(cdl_jax.encode_update(info.update))
        after = cdl_jax.apply_update(before, update)
        assert cdl_jax.tree_digest(after) == cdl_jax.tree_digest(cdl_jax.deployed(state))
        pairs = zip(jax.tree.leaves(after), jax.tree.leaves(cdl_jax.deployed(state)), strict=True)
        for mine, theirs in pairs:
            assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
