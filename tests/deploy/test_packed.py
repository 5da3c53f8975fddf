"""Packing an update into few arrays and unpacking it inside a compiled program."""

import jax
import numpy as np
import pytest

import cdl_jax.core.update  # noqa: F401  registers updates with jax
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.deploy.packed import pack, unpack


def made(sizes, dtypes, scaled=()):
    rng = np.random.default_rng(0)
    values = [rng.integers(-7, 8, n).astype(t) for n, t in zip(sizes, dtypes, strict=True)]
    return SparseUpdate(
        indices=tuple(np.sort(rng.choice(1000, n, replace=False)).astype(np.int32) for n in sizes),
        values=tuple(values),
        counts=np.array(sizes, np.int32),
        base=np.uint32(4),
        version=np.uint32(5),
        digest=np.zeros(4, np.uint32),
        sections=tuple((i,) for i in range(len(sizes))),
        fingerprint=bytes(16),
        scales=tuple(np.float32(2.0**-i) if s else None for i, s in enumerate(scaled)),
    )


@pytest.mark.parametrize("update", [
    made([3, 1, 8, 5], ["float32"] * 4),
    made([3, 0, 2, 5], ["float32", "int8", "float16", "float32"]),
    made([3, 2, 4], ["int8", "float32", "int8"], [True, False, True]),
    made([], []),
])  # fmt: skip
@pytest.mark.parametrize("least", [None, 6])
def test_entries_come_back_followed_by_padding(update, least):
    room = None if least is None else (least,) * len(update.indices)
    form, packed = pack(update, room)
    back = jax.jit(lambda p: unpack(form, p))(packed)
    assert (back.sections, back.fingerprint) == (update.sections, update.fingerprint)
    scales = update.section_scales()
    assert [s is None for s in back.section_scales()] == [s is None for s in scales]
    for got, want, at in zip(back.section_scales(), scales, update.indices, strict=True):
        assert want is None or (np.asarray(got)[: at.size] == want).all()
    for at, new, index, values in zip(
        back.indices, back.values, update.indices, update.values, strict=True
    ):
        n = index.size
        slots = max(n, least or 0, 1)
        assert at.size == new.size == 1 << (slots - 1).bit_length()
        np.testing.assert_array_equal(at[:n], index)
        np.testing.assert_array_equal(new[:n], values)
        assert new.dtype == values.dtype
        assert (np.diff(np.asarray(at).astype(np.int64)) > 0).all()
        assert (np.asarray(at)[n:] > 2**30).all()


def test_updates_of_one_form_share_a_program():
    one, other = made([3, 5], ["float32"] * 2), made([4, 7], ["float32"] * 2)
    assert pack(one)[0] == pack(other)[0]
    assert hash(pack(one)[0]) == hash(pack(other)[0])
