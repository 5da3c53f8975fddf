"""The native finiteness check."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.native.finite import all_finite
from tests.native.oracle import PATHS

_kernels = pytest.importorskip("cdl_jax.native._kernels")
LARGEST = np.finfo(np.float32).max


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 31, 32, 33, 1000, 2**18 - 1, 2**18 + 1]), max_size=4),
    path=st.sampled_from(PATHS),
    data=st.data(),
)
def test_finds_one_bad_entry_anywhere(sizes, path, data):
    assert _kernels.use_path(path)
    arrays = [np.full(n, -LARGEST, np.float32) for n in sizes]
    assert all_finite([jnp.asarray(x) for x in arrays])
    filled = [x for x in arrays if x.size]
    if not filled:
        return
    victim = data.draw(st.sampled_from(range(len(filled))))
    position = data.draw(st.integers(0, filled[victim].size - 1))
    filled[victim][position] = data.draw(st.sampled_from([np.inf, -np.inf, np.nan, -np.nan]))
    assert not all_finite([jnp.asarray(x) for x in arrays])


def test_subnormals_and_zeros_are_finite():
    assert all_finite([jnp.array([1e-45, -1e-45, 0.0, -0.0], jnp.float32)])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes_count(dtype):
    good = [jnp.ones(3), jnp.ones((2, 2), dtype), jnp.arange(3)]
    assert all_finite(good)
    assert not all_finite([*good, jnp.array([1.0, jnp.nan], dtype)])


def test_inside_jit():
    check = jax.jit(lambda tree: all_finite(tree))
    tree = [jnp.ones(2**19), jnp.ones((3, 4))]
    assert check(tree)
    assert not check([tree[0].at[-1].set(jnp.inf), tree[1]])
