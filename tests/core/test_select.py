import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.core import select
from tests.core.helpers import check_indices


def largest(acc, k):
    """Ascending positions of the k largest magnitudes, NaN above all, ties to the lowest."""
    magnitude = np.where(np.isnan(acc), 0, np.abs(acc))
    order = np.lexsort((np.arange(acc.size), -magnitude, ~np.isnan(acc)))
    return np.sort(order[:k])


def pick(form, acc, k):
    return _pick(form, acc, np.zeros_like(acc), k)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _pick(form, update, residual, k):
    # The residual comes from outside: XLA would drop the addition of a constant zero.
    return form([update], [residual], (k,), global_scope=False)


def add(update, residual):
    """As XLA adds them, which flushes some subnormals; the selection is NumPy's."""
    return np.asarray(jax.jit(jnp.add)(update, residual))


@st.composite
def trees(draw):
    """Updates and residuals of one of three trees, from few values or from all bits."""
    sizes = draw(st.sampled_from([(1,), (9, 300, 9), (70, 1, 2000)]))
    dtype = jnp.dtype(draw(st.sampled_from(["float64", "float32", "float16", "bfloat16"])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        pool = np.array([0, -0.0, 1e-40, 6e-8, 0.5, -0.5, 2, -3, np.inf, np.nan]).astype(dtype)
        values = functools.partial(rng.choice, pool[: draw(st.integers(1, pool.size))])
    else:
        bytes_of = dtype.itemsize
        values = lambda n: np.frombuffer(rng.bytes(n * bytes_of), dtype)
    return [values(n) for n in sizes], [values(n) for n in sizes]


@settings(deadline=None, max_examples=80)
@given(tree=trees(), density=st.sampled_from([0.01, 0.3, 1.0]), global_scope=st.booleans())
def test_every_float_in_both_scopes_equals_the_oracle(tree, density, global_scope):
    updates, residuals = tree
    with jax.enable_x64(updates[0].dtype == np.float64):
        _check_against_the_oracle(updates, residuals, density, global_scope)


def _check_against_the_oracle(updates, residuals, density, global_scope):
    accs = [add(u, r) for u, r in zip(updates, residuals, strict=True)]
    scoped = [np.concatenate(accs)] if global_scope else accs
    ks = tuple(max(1, int(density * acc.size)) for acc in scoped)
    indices, sent, kept = _select(updates, residuals, ks, global_scope)
    kept = [np.concatenate(kept)] if global_scope else kept
    for acc, k, at, values, rest in zip(scoped, ks, indices, sent, kept, strict=True):
        np.testing.assert_array_equal(at, largest(acc.astype(np.float64), k))
        assert np.asarray(values).tobytes() == acc[np.asarray(at)].tobytes()
        expected = acc.copy()
        expected[np.asarray(at)] = 0
        assert np.asarray(rest).tobytes() == expected.tobytes()


@functools.partial(jax.jit, static_argnums=(2, 3))
def _select(updates, residuals, ks, global_scope):
    return select.xla_top_k(updates, residuals, ks, global_scope=global_scope)


FORMS = [select.error_feedback_top_k, select.xla_top_k]


@pytest.mark.parametrize("acc", [
    [1, -3, 2, 3, -3, 0],
    [0, 0, 0, 0, 0, 0],
    [-0.0, 0.0, -0.0, 1e-40, 0.0, -0.0],
    [1e-3, -1e-3, 1e-3, 1e-3, -1e-3, 1e-3],
    [np.inf, 1, -np.inf, 2, np.inf, 3],
    [1, np.nan, np.inf, 2, -np.nan, 3],
])  # fmt: skip
@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("form", FORMS)
def test_the_k_largest_with_ties_to_the_lowest(form, acc, k):
    acc = np.array(acc, np.float32)
    expected = largest(np.where(np.abs(acc) < 1e-38, np.copysign(0, acc), acc), k)
    indices, sent, _ = pick(form, acc, k)
    np.testing.assert_array_equal(indices[0], expected)
    np.testing.assert_array_equal(sent[0], np.where(np.abs(acc) < 1e-38, 0, acc)[expected])


@pytest.mark.parametrize("form", FORMS)
def test_heavily_tied_selection_is_exact(form):
    rng = np.random.default_rng(0)
    acc = rng.choice(np.array([0, -0.0, 1e-3, -1e-3, 2e-3], np.float32), 5000)
    for k in (1, 100, 2500, 4999):
        np.testing.assert_array_equal(pick(form, acc, k)[0][0], largest(acc, k))


@settings(deadline=None, max_examples=25)
@given(
    n=st.sampled_from([1, 1001]),
    share=st.sampled_from([0.02, 0.4, 1.0]),
    scope=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_k_partitions_acc_by_bits(n, share, scope, seed):
    rng = np.random.default_rng(seed)
    updates, residuals = ([rng.integers(0, 2**32, m, dtype=np.uint32).view(np.float32)
                           for m in (n, 13)] for _ in range(2))  # fmt: skip
    accs = [add(u, r) for u, r in zip(updates, residuals, strict=True)]
    scoped = [np.concatenate(accs)] if scope else accs
    ks = tuple(max(1, int(share * acc.size)) for acc in scoped)
    indices, sent, kept = _draw(updates, residuals, ks, scope, jax.random.key(seed % 1000))
    kept = [np.concatenate(kept)] if scope else kept
    for acc, k, at, values, rest in zip(scoped, ks, indices, sent, kept, strict=True):
        check_indices(np.asarray(at), k, acc.size)
        assert np.asarray(values).tobytes() == acc[np.asarray(at)].tobytes()
        expected = acc.copy()
        expected[np.asarray(at)] = 0
        assert np.asarray(rest).tobytes() == expected.tobytes()


@functools.partial(jax.jit, static_argnums=(2, 3))
def _draw(updates, residuals, ks, global_scope, key):
    return select.error_feedback_random_k(
        updates, residuals, ks, global_scope=global_scope, key=key
    )


@pytest.mark.parametrize(("n", "k"), [
    (1, 1), (2, 1), (7, 1), (7, 3), (7, 4), (1000, 500), (1000, 501), (10**6, 9)
])  # fmt: skip
def test_random_positions_are_distinct_ascending_in_range(n, k):
    draw = jax.jit(lambda key: select.random_positions(key, n, k))
    for seed in range(3):
        found = np.asarray(draw(jax.random.key(seed)))
        assert found.shape == (k,)
        check_indices(found, k, n)


@pytest.mark.parametrize(("n", "k"), [(6, 3), (5, 4), (40, 1)])
def test_random_positions_are_uniform_over_subsets(n, k):
    draws = 6000
    keys = jax.random.split(jax.random.key(1), draws)
    found = np.asarray(jax.jit(jax.vmap(lambda key: select.random_positions(key, n, k)))(keys))
    _, counts = np.unique(found, axis=0, return_counts=True)
    subsets = np.prod(range(n - k + 1, n + 1)) // np.prod(range(1, k + 1))
    assert len(counts) == subsets
    expected = draws / subsets
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = subsets - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_random_positions_draws_again_when_too_few_are_distinct(monkeypatch):
    draw, calls = jax.random.randint, []

    def constant_at_first(key, shape, *args):
        calls.append(shape)
        return jnp.zeros(shape, jnp.int32) if len(calls) == 1 else draw(key, shape, *args)

    monkeypatch.setattr(jax.random, "randint", constant_at_first)
    found = np.asarray(select.random_positions(jax.random.key(0), 50, 20))
    assert len(calls) == 2
    check_indices(found, 20, 50)
