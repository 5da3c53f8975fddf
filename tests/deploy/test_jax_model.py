"""Leaves that share arrays and leaves that do not, in one model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.core.compress import entries_sent
from cdl_jax.core.digest import LANES, numpy_digest
from cdl_jax.core.layout import LeafSpec, TreeSpec, dtype_of
from cdl_jax.deploy import jax_model
from cdl_jax.deploy.jax_model import SMALL, JaxModel
from cdl_jax.deploy.numpy_model import NumpyModel
from cdl_jax.wire import Snapshot
from experiments.bench.apply import make_update

SPEC = TreeSpec((
    LeafSpec("model_state/mean", (30,), "float32"),
    LeafSpec("params/a/b", (30,), "float32"),
    LeafSpec("params/a/w", (SMALL // 32 + 1, 32), "float32"),
    LeafSpec("params/c", (30, 2), "float32"),
    LeafSpec("params/half", (4, 3), "bfloat16"),
    LeafSpec("params/large", (3, SMALL), "float32"),
    LeafSpec("params/none", (0, 3), "float32"),
))  # fmt: skip
SMALL_ONES = [0, 1, 3, 4, 6]


@pytest.fixture(params=["kernels", "xla"], autouse=True)
def form(request, monkeypatch):
    if request.param == "xla":
        monkeypatch.setattr(jax_model, "available", lambda: False)
    return request.param


def new_snapshot(seed=0):
    rng = np.random.default_rng(seed)
    tensors = {
        leaf.name: rng.standard_normal(leaf.shape).astype(dtype_of(leaf.dtype))
        for leaf in SPEC.leaves
    }
    return Snapshot(SPEC, tensors, 0, bytes(16), numpy_digest(tensors))


def new_update(seed):
    update = make_update(SPEC, [entries_sent(0.1, leaf.size) for leaf in SPEC.leaves], seed)
    pairs = zip(update.values, SPEC.leaves, strict=True)
    return dataclasses.replace(
        update, values=tuple(x.astype(dtype_of(leaf.dtype)) for x, leaf in pairs)
    )


def as_bytes(tree):
    return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def test_it_is_the_numpy_model_at_every_version(form):
    snapshot = new_snapshot()
    model, oracle = JaxModel(snapshot), NumpyModel(snapshot)
    digest = snapshot.digest
    for seed in range(4):
        update = new_update(seed)
        digest = model.write([model.plan(update)], digest)
        oracle.write([oracle.plan(update)], np.zeros(LANES, np.uint32))
        assert as_bytes(model.tree()) == as_bytes(oracle.tree())
        assert np.array_equal(digest, model.full_digest())
        assert np.array_equal(digest, oracle.full_digest())


def test_small_leaves_share_arrays_where_the_kernels_are(form):
    leaves = JaxModel(new_snapshot())._leaves
    small = {leaves.rows[i].array for i in SMALL_ONES}
    assert len(small) == (2 if form == "kernels" else 5)  # one of each dtype
    assert len(leaves.arrays) == len(small) + 2


def test_nothing_of_the_size_of_a_large_leaf_is_copied():
    model = JaxModel(new_snapshot())
    large = ["params/a/w", "params/large"]
    before = [model.tensors()[name].unsafe_buffer_pointer() for name in large]
    model.tree()
    for seed in range(3):
        model.write([model.plan(new_update(seed))], np.zeros(LANES, np.uint32))
        model.tree()
    assert [model.tensors()[name].unsafe_buffer_pointer() for name in large] == before


def test_the_tree_is_taken_apart_once_a_version():
    model, update = JaxModel(new_snapshot()), new_update(0)
    first = model.tree()
    assert model.tree() is first
    model.write([model.plan(update)], np.zeros(LANES, np.uint32))
    assert model.tree() is not first
    assert model.tree()["params"]["c"].reshape(-1)[update.indices[3]].tolist() == (
        update.values[3].tolist()
    )
    model.load(new_snapshot(1).tensors)
    assert as_bytes(model.tree()["model_state"]) == as_bytes(
        new_snapshot(1).tensors["model_state/mean"]
    )


def outputs(params, model_state, inputs):
    hidden = inputs @ params["a"]["b"] + model_state["mean"].sum()
    return hidden[:, None] + params["c"].reshape(-1) + params["large"][:, :60].sum(0)


@pytest.mark.parametrize("predict_fn", [outputs, jax.jit(outputs)], ids=["plain", "jitted"])
def test_outputs_are_those_of_the_tree(predict_fn):
    model, inputs = JaxModel(new_snapshot()), np.ones((2, 30), np.float32)
    for seed in range(2):
        tree = model.tree()
        found = model.predict(predict_fn, inputs)
        np.testing.assert_allclose(
            found, predict_fn(tree["params"], tree["model_state"], inputs), rtol=1e-6
        )
        model.write([model.plan(new_update(seed))], np.zeros(LANES, np.uint32))


def test_a_jitted_function_is_compiled_once_for_both_buffers():
    traced = []

    @jax.jit
    def predict_fn(params, model_state, inputs):
        traced.append(inputs.shape)
        return inputs @ params["a"]["b"]

    snapshot = new_snapshot()
    for model in (JaxModel(snapshot), JaxModel(snapshot)):
        for size in (1, 2, 1):
            model.predict(predict_fn, jnp.ones((size, 30)))
    assert traced == [(1, 30), (2, 30)]
