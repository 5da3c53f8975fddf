"""Selection by a threshold against a stable sort in NumPy, for every bit pattern."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.core import select, threshold
from tests.native.oracle import INPUTS, make

SIZES = [1, 5, 63, 64, 65, 1000]
find = jax.jit(threshold.top_k_positions, static_argnums=1)


def oracle(x, k):
    with np.errstate(invalid="ignore"):  # a signalling NaN
        magnitude = np.abs(np.asarray(x).astype(np.float64))
    order = np.lexsort((np.arange(x.size), -magnitude, ~np.isnan(magnitude)))
    return np.sort(order[:k])


@st.composite
def inputs(draw):
    """An array of a fixed size, from few values or from all bits, and a k."""
    n = draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        pool = np.array([1, -1, 0.0, -0.0, 1e-40, 2, np.inf, -np.inf, np.nan], np.float32)
        few = draw(st.sets(st.sampled_from(range(pool.size)), min_size=1))
        x = rng.choice(pool[sorted(few)], n)
    else:
        x = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    return x, draw(st.sampled_from(sorted({1, max(1, n // 7), max(1, n - 1), n})))


@settings(deadline=None, max_examples=80)
@given(inputs(), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_the_k_largest_in_ascending_order(case, dtype):
    x, k = case
    words = x if dtype == "float32" else x.view(np.uint16)[: x.size].view(jnp.dtype(dtype))
    np.testing.assert_array_equal(find(words, k), oracle(words, k))


@pytest.mark.parametrize("kind", sorted(INPUTS))
@pytest.mark.parametrize("n", [2**16 - 1, 2**16, 70_001])
def test_sizes_that_it_is_used_for(kind, n):
    x, _ = make(kind, n, 0)
    for k in (1, n // 1000, n - 1):
        np.testing.assert_array_equal(find(x, k), oracle(x, k))


@pytest.mark.parametrize("global_scope", [False, True])
def test_equals_the_form_that_sorts(monkeypatch, global_scope):
    rng = np.random.default_rng(0)
    updates = [np.round(rng.normal(size=n), 2).astype(np.float32) for n in (3000, 50, 50, 7)]
    residuals = [rng.normal(size=u.shape).astype(np.float32) for u in updates]
    ks = (40,) if global_scope else (30, 2, 2, 1)
    form = functools.partial(select.xla_top_k, ks=ks, global_scope=global_scope)
    expected = jax.jit(lambda u, r: form(u, r))(updates, residuals)
    monkeypatch.setattr(select, "WORTH_A_THRESHOLD", 1)
    monkeypatch.setattr(select, "_large", threshold.top_k_positions)
    found = jax.jit(lambda u, r: form(u, r))(updates, residuals)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
