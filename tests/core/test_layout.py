import hashlib

import ml_dtypes
import numpy as np
import pytest

from cdl_jax.core import layout
from cdl_jax.core.layout import LeafSpec, TreeSpec


def test_fingerprint_is_the_documented_hash():
    spec = TreeSpec((LeafSpec("a", (2, 3), "float32"), LeafSpec("b/c", (), "bfloat16")))
    expected = hashlib.sha256(b"a\tfloat32\t2,3\nb/c\tbfloat16\t\n").digest()[:16]
    assert spec.fingerprint == expected


@pytest.mark.parametrize("other", [
    LeafSpec("b", (2, 3), "float32"),
    LeafSpec("a", (3, 2), "float32"),
    LeafSpec("a", (2, 3), "float16"),
])  # fmt: skip
def test_fingerprint_tells_paths_shapes_and_dtypes_apart(other):
    spec = TreeSpec((LeafSpec("a", (2, 3), "float32"),))
    assert spec.fingerprint != TreeSpec((other,)).fingerprint


@pytest.mark.parametrize("names", [("b", "a"), ("a", "a")])
def test_leaves_must_be_sorted_and_unique(names):
    with pytest.raises(ValueError, match="unique and sorted"):
        TreeSpec(tuple(LeafSpec(name, (1,), "float32") for name in names))


def test_json_round_trip():
    spec = TreeSpec((LeafSpec("a", (2, 3), "float32"), LeafSpec("b", (), "int8")))
    assert TreeSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("rows", [[["a", [1]]], [["a", "x", "float32"]], [3], [["a", None, "f"]]])
def test_json_of_another_shape_is_refused(rows):
    with pytest.raises(ValueError, match="not a tree specification"):
        TreeSpec.from_json(rows)


@pytest.mark.parametrize("key", ["a", "a/b", "~", "~1", "a~0/b", ""])
def test_escape_round_trip(key):
    assert "/" not in layout.escape(key)
    assert layout.unescape(layout.escape(key)) == key


def test_nested_unescapes_keys():
    assert layout.nested({"a~1b/c~0": 1, "d": 2}) == {"a/b": {"c~": 1}, "d": 2}


def test_dtypes_by_name():
    assert layout.dtype_of("float16") == np.float16
    assert layout.dtype_of("bfloat16") == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match="'float33'"):
        layout.dtype_of("float33")


def test_bits_and_ends():
    widths = [layout.bits_dtype(t).name for t in (bool, np.float16, np.int32, np.float64)]
    assert widths == ["uint8", "uint16", "uint32", "uint64"]
    assert layout.ends([2, 0, 3]).tolist() == [0, 2, 2, 5]
    assert layout.ends([2**31, 2**31]).tolist() == [0, 2**31, 2**32]
