"""A tree goes through a bundle and comes out the same, small arrays and large ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.train import bundle as bundles


def of_all_kinds():
    bits = np.random.default_rng(0).integers(0, 2**32, 7, dtype=np.uint32)
    return {
        "scalar": jnp.float32(-0.0),
        "bits": jax.lax.bitcast_convert_type(bits, jnp.float32),
        "matrix": jnp.arange(6, dtype=jnp.int32).reshape(2, 3),
        "flags": (jnp.array([True, False]), jnp.zeros(0, jnp.bool_)),
        "narrow": [jnp.arange(3, dtype=jnp.bfloat16), jnp.arange(-2, 2, dtype=jnp.int8)],
        "nibbles": jnp.arange(5, dtype=jnp.int4),
        "complex": jnp.array([1 + 2j]),
        "more": jnp.arange(5, dtype=jnp.uint16),
    }


@pytest.mark.parametrize(("small", "apart"), [(0, 9), (12, 4), (1 << 18, 2)])
def test_a_bundle_holds_the_tree_bit_for_bit(monkeypatch, small, apart):
    monkeypatch.setattr(bundles, "_SMALL", small)
    tree = of_all_kinds()
    packed = jax.jit(lambda tree: bundles.bundle(tree))(tree)  # traced anew
    assert len(packed.apart) == apart
    opened = packed.open()
    assert jax.tree.structure(opened) == jax.tree.structure(tree)
    for ours, theirs in zip(jax.tree.leaves(opened), jax.tree.leaves(tree), strict=True):
        assert isinstance(ours, np.ndarray)
        assert ours.flags.aligned
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.tobytes() == np.asarray(theirs).tobytes()


def test_its_shapes_are_known_without_running():
    tree = of_all_kinds()
    shapes = jax.eval_shape(lambda tree: bundles.bundle(tree), tree).shapes()
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), some) for some in (shapes, tree)]
    assert kinds[0] == kinds[1]
