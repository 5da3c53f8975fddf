"""Sections side by side: the same entries, written and hashed alike."""

import numpy as np
import pytest

from cdl_jax.core.check import check_update
from cdl_jax.core.layout import LeafSpec, SparseUpdate, TreeSpec
from cdl_jax.deploy import merged as module
from cdl_jax.deploy.jax_model import JaxModel
from cdl_jax.deploy.merged import groups, merged
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.wire import Snapshot

DTYPES = ("float32", "float16", "float32", "int32", "float32", "float32", "bfloat16")


def spec():
    return TreeSpec(tuple(LeafSpec(f"p/{i}", (5, i + 3), t) for i, t in enumerate(DTYPES)))


def update(sections=((0,), (1,), (2,), (4, 5)), scaled=(False, False, True, False), seed=0):
    rng, tree = np.random.default_rng(seed), spec()
    indices, values, scales = [], [], []
    for places, levels in zip(sections, scaled, strict=True):
        total = sum(tree.leaves[i].size for i in places)
        at = np.sort(rng.choice(total, rng.integers(0, 6), replace=False)).astype(np.int32)
        dtypes = {tree.leaves[i].dtype for i in places}
        dtype = "int8" if levels else dtypes.pop() if len(dtypes) == 1 else "uint32"
        indices.append(at)
        values.append(rng.integers(-9 if dtype != "uint32" else 0, 9, at.size).astype(dtype))
        scales.append(np.float32(2.0 ** -rng.integers(1, 5)) if levels else None)
    counts = np.array([at.size for at in indices], np.int32)
    return SparseUpdate(
        tuple(indices), tuple(values), counts, np.uint32(0), np.uint32(1),
        np.zeros(4, np.uint32), sections, tree.fingerprint, tuple(scales),
    )  # fmt: skip


def models():
    rng, tree = np.random.default_rng(7), spec()
    tensors = {}
    for leaf in tree.leaves:
        dtype = np.float32 if leaf.dtype == "bfloat16" else leaf.dtype
        tensors[leaf.name] = rng.integers(-50, 50, leaf.shape).astype(dtype)
        if leaf.dtype == "bfloat16":
            tensors[leaf.name] = tensors[leaf.name].astype(np.dtype("bfloat16"))
    snapshot = Snapshot(tree, tensors, 0, bytes(16), np.zeros(4, np.uint32))
    return NumpyModel(snapshot), JaxModel(snapshot)


CASES = [
    (((0,), (1,), (2,), (4, 5)), (False, False, True, False)),
    (((0,), (2,), (4,)), (True, False, True)),
    (((0, 1), (2, 3)), (False, False)),
    (((0, 2, 4), (5,), (1,)), (True, False, False)),
    ((), ()),
]


@pytest.mark.parametrize(("sections", "scaled"), CASES)
@pytest.mark.parametrize("seed", range(4))
def test_the_same_entries_have_the_same_places_values_and_scales(sections, scaled, seed):
    made = update(sections, scaled, seed)
    together = merged(made, spec())
    check_update(together, spec())
    assert entries(together) == entries(made)


@pytest.mark.parametrize(("sections", "scaled"), CASES)
def test_jax_and_numpy_models_agree_on_digest_and_bits(sections, scaled):
    numpy_model, jax_model = models()
    for seed in range(3):
        made = update(sections, scaled, seed)
        digest = np.zeros(4, np.uint32)
        plans = numpy_model.plan(made), jax_model.plan(made)
        expected = numpy_model.write([plans[0]], digest)
        np.testing.assert_array_equal(jax_model.write([plans[1]], digest), expected)
        np.testing.assert_array_equal(jax_model.full_digest(), numpy_model.full_digest())


def test_sections_of_one_dtype_become_one():
    assert [g.sections for g in groups(update(), spec())] == [(0, 3), (1,), (2,)]


def test_positions_stay_in_int32(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 40)
    module._groups.cache_clear()
    try:
        made = update(((0,), (2,), (4,)), (False,) * 3)
        assert [g.sections for g in groups(made, spec())] == [(0, 1), (2,)]
        assert entries(merged(made, spec())) == entries(made)
    finally:
        module._groups.cache_clear()


def entries(made):
    """{(leaf, position): (value, scale)} of every entry."""
    out, tree = {}, spec()
    rows = zip(made.sections, made.indices, made.values, made.section_scales(), strict=True)
    for places, at, values, scale in rows:
        assert (np.diff(at) > 0).all()
        scales = np.broadcast_to(np.float32(0 if scale is None else scale), at.shape)
        for position, value, s in zip(at, values, scales, strict=True):
            for place in places:
                if position < tree.leaves[place].size:
                    assert (place, int(position)) not in out
                    out[place, int(position)] = (float(value), float(s), scale is None)
                    break
                position -= tree.leaves[place].size
    return out
