"""Rows in few arrays read as a tuple of arrays would be, in programs and out of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.core.joined import JoinedLeaves, join, over, room
from cdl_jax.core.ragged import LARGE, on_host, row_sizes

KINDS = ("float32", "int32", "bfloat16", "uint32")
rows_of = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(KINDS)), max_size=8)


def made(kinds):
    return [jnp.arange(n).astype(kind) + i for i, (n, kind) in enumerate(kinds)]


@settings(max_examples=30, deadline=None)
@given(kinds=rows_of)
def test_rows_come_back_in_their_order(kinds):
    rows = made(kinds)
    joined = jax.jit(join)(rows)
    assert len(joined) == len(rows)
    assert len(joined.arrays) == len({kind for _, kind in kinds})
    assert row_sizes(joined) == row_sizes(rows) == [n for n, _ in kinds]
    for got, here, row in zip(joined, on_host(joined), rows, strict=True):
        assert isinstance(here, np.ndarray)
        assert got.dtype == here.dtype == row.dtype
        np.testing.assert_array_equal(got, row)
        np.testing.assert_array_equal(here, row)


@settings(max_examples=30, deadline=None)
@given(kinds=rows_of)
def test_room_is_where_they_lie(kinds):
    joined = join(made(kinds))
    shapes, where = room(*zip(*kinds, strict=True)) if kinds else room([], [])
    assert where == joined.rows
    assert [(s.shape, s.dtype) for s in shapes] == [(a.shape, a.dtype) for a in joined.arrays]


def test_a_long_row_is_an_array_of_its_own():
    rows = [jnp.zeros(2), jnp.zeros(LARGE + 1), jnp.zeros(3)]
    joined = join(rows)
    assert [a.size for a in joined.arrays] == [5, LARGE + 1]
    assert joined[1] is joined.arrays[1]
    assert joined[-1].size == 3
    assert [x.size for x in joined[:2]] == [2, LARGE + 1]


def test_a_stack_of_them_has_stacked_rows():
    stacked = jax.vmap(lambda x: join([x, 2 * x[:1]]))(jnp.arange(6.0).reshape(3, 2))
    assert [row.shape for row in stacked] == [(3, 2), (3, 1)]
    second = jax.tree.map(lambda x: x[1], stacked)
    assert [row.tolist() for row in second] == [[2.0, 3.0], [4.0]]


def test_joined_rows_are_not_joined_again():
    joined = join([jnp.zeros(2), jnp.zeros(3)])
    assert join(joined) is joined


def test_slices_of_joined_rows_cost_no_copy():
    joined = join(list(join([jnp.zeros(1)] * 50)))
    text = jax.jit(lambda x: join(list(x))).lower(joined).compile().as_text()
    assert "concatenate" not in text


def test_elementwise_functions_go_by_array():
    a, b = join([jnp.ones(2), jnp.ones(3)]), join([jnp.ones(2), 2 * jnp.ones(3)])
    assert [row.tolist() for row in over(jnp.add, a, b)] == [[2.0, 2.0], [3.0, 3.0, 3.0]]
    with pytest.raises(ValueError, match="lie differently"):
        over(jnp.add, a, join([jnp.ones(3), jnp.ones(2)]))


def test_a_row_of_two_axes_is_refused():
    with pytest.raises(ValueError, match=r"a row has the shape \(2, 3\); flatten it"):
        join([jnp.zeros((2, 3))])


def test_joined_leaves_are_read_by_path_in_their_shapes():
    rows = join([jnp.arange(6.0), jnp.arange(2.0)])
    leaves = jax.jit(lambda x: x)(JoinedLeaves(rows, ("a/w", "b"), ((2, 3), (2,))))
    np.testing.assert_array_equal(leaves["a/w"], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(leaves["b"], [0, 1])
    assert list(leaves) == ["a/w", "b"]
    assert "c" not in leaves
