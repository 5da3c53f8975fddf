"""A tree goes through a bundle and comes out the same, small arrays and large ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.train import bundle as bundles


@pytest.mark.parametrize("small", [0, 1, 6, 1 << 16])
def test_a_bundle_holds_the_tree_bit_for_bit(monkeypatch, small):
    monkeypatch.setattr(bundles, "_SMALL", small)
    rng = np.random.default_rng(0)
    tree = {
        "scalar": jnp.float32(-0.0),
        "bits": jax.lax.bitcast_convert_type(
            rng.integers(0, 2**32, 7, dtype=np.uint32), jnp.float32
        ),
        "matrix": jnp.arange(6, dtype=jnp.int32).reshape(2, 3),
        "flags": (jnp.array([True, False]), jnp.zeros(0, jnp.bool_)),
        "narrow": [jnp.arange(3, dtype=jnp.bfloat16), jnp.arange(4, dtype=jnp.int8)],
        "more": jnp.arange(5, dtype=jnp.int32),
    }
    packed = jax.jit(lambda tree: bundles.bundle(tree))(tree)  # traced anew
    leaves = jax.tree.leaves(tree)
    assert len(packed.large) == sum(x.size > small for x in leaves)
    kinds = {x.dtype for x in leaves if x.size <= small}
    assert {np.dtype(name) for name in packed.joined} == kinds
    opened = jax.device_get(packed).open()
    assert jax.tree.structure(opened) == jax.tree.structure(tree)
    for ours, theirs in zip(jax.tree.leaves(opened), leaves, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    shapes = jax.eval_shape(lambda tree: bundles.bundle(tree), tree).shapes()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tree
    )
