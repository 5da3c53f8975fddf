import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.core import tree
from tests.core.helpers import assert_same, bits


class Pair(NamedTuple):
    left: Any
    right: Any


def test_paths_are_sorted_and_rebuilt():
    value = {"b": [jnp.zeros(1), (jnp.ones(2), None)], "a/c": Pair(jnp.ones(3), {"~": jnp.ones(4)})}
    flat = tree.flatten(value)
    assert flat.names == ("a~1c/left", "a~1c/right/~0", "b/0", "b/1/0")
    assert [leaf.size for leaf in flat.leaves] == [3, 4, 1, 2]
    rebuilt = flat.rebuild(flat.leaves)
    assert jax.tree.structure(rebuilt) == jax.tree.structure(value)
    assert_same(rebuilt, value)


def test_order_is_of_the_paths_not_of_jax():
    flat = tree.flatten([jnp.full(1, i) for i in range(12)])
    assert flat.names[:4] == ("0", "1", "10", "11")
    assert [int(x[0]) for x in flat.leaves[:4]] == [0, 1, 10, 11]
    assert [int(x[0]) for x in flat.rebuild(flat.leaves)] == list(range(12))


def test_two_leaves_with_one_path_are_refused():
    with pytest.raises(ValueError, match="share the path '0'"):
        tree.flatten(collections.OrderedDict([(0, jnp.ones(1)), ("0", jnp.ones(1))]))


@pytest.mark.parametrize(("leaf", "says"), [
    (3.0, "'a' is a float, not an array"),
    (jax.random.key(0), "'a' has dtype key<fry>, which cannot be deployed"),
    (np.ones(2, np.complex64), "'a' has dtype complex64"),
    (jax.ShapeDtypeStruct((2,), jnp.int4), "narrower than a byte"),
])  # fmt: skip
def test_leaves_that_cannot_be_deployed_are_named(leaf, says):
    with pytest.raises(ValueError, match=says):
        tree.tree_spec({"a": leaf})


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "int8", "bool", "float8_e4m3fn"]
)
def test_bits_there_and_back(dtype):
    raw = np.random.default_rng(0).integers(0, 256, 512).astype(np.uint8)
    raw = raw & 1 if dtype == "bool" else raw
    x = jnp.asarray(raw.view(jnp.dtype(dtype)))
    np.testing.assert_array_equal(np.asarray(jax.jit(tree.to_bits)(x)), bits(x))
    assert_same(jax.jit(lambda b: tree.from_bits(b, dtype))(tree.to_bits(x)), x)
