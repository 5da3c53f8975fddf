import hashlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import cdl_jax
from cdl_jax.core import digest, update
from tests.core.helpers import bits

DTYPES = ["float32", "float16", "bfloat16", "int32", "int8", "uint16", "bool", "float8_e5m2"]
WIDE = ["float64", "int64", "uint64"]
SHAPES = [(), (0,), (1,), (7, 3), (2, 0, 3), (70_001,)]  # the last passes NumPy's block


def random_array(shape, dtype, seed=0):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    count = int(np.prod(shape))
    raw = np.random.default_rng(seed).integers(0, 256, count * dtype.itemsize).astype(np.uint8)
    return (raw & 1 if dtype == np.bool_ else raw).view(dtype).reshape(shape)


def by_hand(name, array):
    """The module's docstring in Python's own integers."""
    seeds = hashlib.sha256(f"{name}\0{array.dtype.name}".encode()).digest()
    seeds = [int.from_bytes(seeds[i : i + 4], "little") for i in (0, 4, 8, 12)]
    words = bits(array).astype(np.uint64).tolist()
    if array.dtype.itemsize == 8:
        words = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    lanes = [sum(mixed(p, w, s) for p, w in enumerate(words)) % 2**32 for s in seeds]
    return np.array(lanes, np.uint32)


def mixed(p, w, s):
    h = (p ^ s) * 0x9E3779B1 % 2**32
    h = (h ^ (h >> 15)) ^ w
    h = h * 0x85EBCA6B % 2**32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)


@pytest.mark.parametrize("dtype", DTYPES + WIDE)
@pytest.mark.parametrize("shape", [(), (0,), (7, 3)])
def test_numpy_digest_is_the_documented_one(shape, dtype):
    array = random_array(shape, dtype)
    np.testing.assert_array_equal(digest.numpy_digest({"a/b": array}), by_hand("a/b", array))


@pytest.mark.parametrize("form", ["native", "xla"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_and_numpy_agree(dtype, form, monkeypatch):
    if form == "xla":
        monkeypatch.setattr(update, "available", lambda: False)
        monkeypatch.setattr(update, "_digest_words", update.digest_words)  # no compiled one
    tree = {str(i): random_array(shape, dtype, i) for i, shape in enumerate(SHAPES)}
    expected = digest.to_hex(digest.numpy_digest(tree))
    assert cdl_jax.tree_digest(jax.tree.map(jnp.asarray, tree)) == expected
    assert cdl_jax.tree_digest(tree) == expected


@pytest.mark.parametrize("dtype", WIDE)
def test_jax_and_numpy_agree_in_eight_bytes(dtype):
    tree = {"a": random_array((5, 3), dtype), "b": random_array((), dtype, 1)}
    with jax.enable_x64(True):
        ours = digest.to_hex(update.digest_words(jax.tree.map(jnp.asarray, tree)))
    assert ours == digest.to_hex(digest.numpy_digest(tree))


def test_numpy_leaves_are_not_narrowed_beside_jax_ones():
    wide = {"a": np.full(3, np.pi), "b": np.zeros(2, np.float32)}
    mixed_tree = {"a": wide["a"], "b": jnp.zeros(2)}
    assert cdl_jax.tree_digest(mixed_tree) == cdl_jax.tree_digest(wide)


def test_digest_depends_on_path_dtype_position_and_value():
    ones = np.ones(4, np.float32)
    trees = [
        {"a": ones},
        {"b": ones},
        {"a": ones.view(np.int32)},
        {"a": np.array([2, 1, 1, 1], np.float32)},
        {"a": np.array([1, 2, 1, 1], np.float32)},
        {"a": np.array([1, 1, 1, -1], np.float32)},
    ]
    assert len({cdl_jax.tree_digest(tree) for tree in trees}) == len(trees)


def test_signed_zeros_and_nan_payloads_are_told_apart():
    words = np.array([0, 0x80000000, 0x7FC00000, 0x7FC00001, 0x7F800001, 1], np.uint32)
    found = {cdl_jax.tree_digest({"a": jnp.asarray(w[None].view(np.float32))}) for w in words}
    assert len(found) == len(words)


def test_a_change_adds_to_the_digest():
    old = random_array((1000,), "float32")
    places = np.array([0, 17, 999], np.uint32)
    new = old.copy()
    new[places] = [1.5, -0.0, 3.25]
    delta = digest.numpy_change(
        bits(old)[places], bits(new)[places], places, digest.seeds("a", "float32")[:, None]
    )
    before = digest.numpy_digest({"a": old})
    np.testing.assert_array_equal(before + delta, digest.numpy_digest({"a": new}))


def test_hex_round_trip():
    lanes = np.array([0, 2**32 - 1, 5, 2**31], np.uint32)
    np.testing.assert_array_equal(digest.from_hex(digest.to_hex(lanes)), lanes)
    with pytest.raises(ValueError, match="32 hex digits, got 'abc'"):
        digest.from_hex("abc")


def test_a_leaf_that_is_no_array_is_refused():
    with pytest.raises(ValueError, match="'a' is a float"):
        cdl_jax.tree_digest({"a": 1.0})
