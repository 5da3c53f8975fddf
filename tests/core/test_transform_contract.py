"""What every transform and every chain with one keeps to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cdl_jax
from tests.core.helpers import (
    NumpyReplica,
    assert_same,
    chained,
    check_indices,
    lenient,
    sparsifier,
    under,
)

COMPRESSORS = {
    "top_k": cdl_jax.top_k(0.1),
    "top_k_global": cdl_jax.top_k(0.1, scope="global"),
    "random_k": cdl_jax.random_k(0.1),
    "random_k_global": cdl_jax.random_k(0.1, scope="global"),
} | {f"quantize_{bits}": cdl_jax.quantize(bits) for bits in (1, 2, 4, 8, 16)}


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def ramp(*shape, dtype=jnp.float32):
    return jnp.linspace(-1, 1, int(np.prod(shape))).reshape(shape).astype(dtype)


TREES = {
    "dict": {"z": {"w": ramp(4, 5), "frozen": None}, "a": ramp(3), "n": jnp.arange(4)},
    "sequences": [ramp(30), (ramp(2, 2), None, jnp.zeros((0, 3))), [jnp.ones((), jnp.int8)]],
    "named": Layer(ramp(6, 4, dtype=jnp.bfloat16), Layer(ramp(), ramp(5, dtype=jnp.bfloat16))),
    "mixed": {"h": ramp(20, dtype=jnp.bfloat16), "s": ramp(25), "n": jnp.ones(3, jnp.uint8)},
    "nothing": {"n": jnp.arange(3), "e": jnp.zeros(0), "none": None},
}


OFTEN = ("top_k", "top_k_global", "quantize_4")


@pytest.mark.parametrize(("compressor", "tree"), [
    *((compressor, tree) for compressor in OFTEN for tree in TREES),
    *((compressor, "mixed") for compressor in COMPRESSORS if compressor not in OFTEN),
])  # fmt: skip
def test_a_transform_keeps_structure_and_compiles_once(compressor, tree):
    params = TREES[tree]
    tx = sparsifier(COMPRESSORS[compressor])
    state = start = tx.init(params)
    update = jax.jit(lambda u, s, p: tx.update(u, s, p, value=1.0, unheard_of="swallowed"))
    for _ in range(3):
        emitted, state = update(params, state, params)
        same_kind(emitted, params)
        same_kind(state, start)
        for leaf, own in zip(jax.tree.leaves(emitted), jax.tree.leaves(params), strict=True):
            if not jnp.issubdtype(own.dtype, jnp.floating):
                assert_same(leaf, own)
    assert update._cache_size() == 1
    assert int(state.count) == 3


def same_kind(tree, like):
    assert jax.tree.structure(tree) == jax.tree.structure(like)
    kinds = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(t)] for t in (tree, like)]
    assert kinds[0] == kinds[1]


def bare(s):
    return chained(optax.sgd(0.1), s)


def injected(s):
    return lenient(
        optax.inject_hyperparams(lambda learning_rate: chained(optax.adam(learning_rate), s))(1e-2)
    )


CHAINS = {
    "bare": lambda s: s,
    "momentum": lambda s: chained(optax.sgd(0.1, momentum=0.9), s),
    "amsgrad": lambda s: chained(optax.amsgrad(1e-2), s),
    "adamw": lambda s: chained(optax.adamw(1e-2), s),
    "clip": lambda s: chained(optax.clip_by_global_norm(0.1), optax.adam(1e-2), s),
    "noise": lambda s: chained(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.sgd(0.1), s),
    "masked": lambda s: chained(optax.adam(1e-2), optax.masked(s, all_of)),
    "inject": injected,
    "apply_if_finite": lambda s: lenient(optax.apply_if_finite(bare(s), 3)),
    "partition": lambda s: lenient(
        optax.partition({"train": bare(s), "freeze": optax.set_to_zero()}, labels)
    ),
}


def all_of(tree):
    return jax.tree.map(lambda _: True, tree)


def labels(tree):
    return {name: "freeze" if name == "a" else "train" for name in tree}


def problem(dtype="float32"):
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=5), "float32"),
        "w": jnp.asarray(rng.normal(size=(6, 5)), dtype),
        "n": jnp.arange(3),
        "none": None,
        "e": jnp.zeros((0, 2)),
    }
    return params, jnp.asarray(rng.normal(size=(3, 4, 6)), "float32")


def loss_fn(params, model_state, batch, key):
    out = batch @ params["w"].astype("float32") + params["a"]
    mean = model_state["mean"] * 0.9 + out.mean(0) * 0.1
    return jnp.mean((out - 1) ** 2), ({"mean": mean}, {"out": out.mean()})


@pytest.mark.parametrize(("chain", "compressor", "dtype"), [
    *((chain, "top_k", "float32") for chain in CHAINS),
    ("momentum", "random_k", "float32"),
    ("adamw", "top_k_global", "bfloat16"),
    ("amsgrad", "quantize_1", "float32"),
    ("masked", "quantize_16", "bfloat16"),
    ("inject", "quantize_4", "float16"),
    ("partition", "random_k_global", "float32"),
])  # fmt: skip
def test_a_chain_steps_exactly_and_compiles_once(chain, compressor, dtype):
    params, batches = problem(dtype)
    tx = CHAINS[chain](sparsifier(COMPRESSORS[compressor]))
    state = cdl_jax.init_state(params, tx, model_state={"mean": jnp.zeros(5)})
    step = cdl_jax.make_step(loss_fn, tx)
    replica = NumpyReplica(cdl_jax.deployed(state))
    before = NumpyReplica(params).leaves
    for t, batch in enumerate(batches):
        state, info = step(state, None, batch)
        replica.apply(info.update)
        replica.assert_equals(cdl_jax.deployed(state))
        assert (int(info.update.base), int(info.update.version)) == (t, t + 1)
        assert not bool(info.skipped)
    assert step._cache_size() == 1
    assert any((x != before[n]).any() for n, x in NumpyReplica(state.params).leaves.items())


def test_a_leaf_outside_the_mask_is_refused_by_name_or_shipped_whole():
    params, batches = problem()
    tx = chained(optax.sgd(0.1), optax.masked(sparsifier(cdl_jax.top_k(0.1)), not_a))
    state = cdl_jax.init_state(params, tx, model_state={"mean": jnp.zeros(5)})
    with pytest.raises(ValueError, match=r"changes a behind or beside .*uncovered='ship'"):
        cdl_jax.make_step(loss_fn, tx)(state, None, batches[0])
    step = cdl_jax.make_step(loss_fn, tx, uncovered="ship")
    replica = NumpyReplica(cdl_jax.deployed(state))
    for batch in batches:
        state, info = step(state, None, batch)
        replica.apply(info.update)
        replica.assert_equals(cdl_jax.deployed(state))
    counts = dict(zip(info.update.sections, info.update.counts.tolist(), strict=True))
    assert counts == {(0,): 1, (1,): 5, (4,): 3}
    assert step._cache_size() == 1


def not_a(tree):
    return {name: jax.tree.map(lambda _, name=name: name != "a", x) for name, x in tree.items()}


@pytest.mark.parametrize("compressor", ["top_k_global", "quantize_4"])
def test_multi_steps_emits_nothing_on_a_silent_micro_step(compressor):
    params, batches = problem()
    inner = chained(optax.adam(1e-2), sparsifier(COMPRESSORS[compressor]))
    multi = optax.MultiSteps(inner, 3)
    with jax.numpy_dtype_promotion("standard"):
        state = cdl_jax.init_state(params, multi, model_state={"mean": jnp.zeros(5)})
        step = cdl_jax.make_step(loss_fn, multi)
        replica = NumpyReplica(cdl_jax.deployed(state))
        for t in range(7):
            before = jax.tree.map(np.array, state.params)
            state, info = step(state, None, batches[t % 3])
            counts = np.asarray(info.update.counts)
            assert counts.any() == (t % 3 == 2)
            if t % 3 < 2:
                assert_same(state.params, before)
            replica.apply(info.update)
            replica.assert_equals(cdl_jax.deployed(state))
    assert step._cache_size() == 1


def without_model_state(params, model_state, batch, key):
    loss, _ = loss_fn(params, {"mean": jnp.zeros(5)}, batch, key)
    return loss, (model_state, {})


def test_multi_steps_skips_a_non_finite_micro_step():
    params, batches = problem()
    multi = optax.MultiSteps(chained(optax.adam(1e-2), sparsifier(cdl_jax.top_k(0.1))), 2)
    with jax.numpy_dtype_promotion("standard"):
        step = cdl_jax.make_step(without_model_state, multi)
        state = cdl_jax.init_state(params, multi)
        clean = cdl_jax.init_state(params, multi)
        for batch in (
            batches[0],
            batches[1] * jnp.nan,
            batches[1],
            batches[2] * jnp.inf,
            batches[2],
        ):
            state, info = step(state, None, batch)
            if not bool(info.skipped):
                clean, _ = step(clean, None, batch)
    assert_same((state.params, state.opt_state), (clean.params, clean.opt_state))


def test_injected_learning_rate_changes_without_a_compilation():
    params, batches = problem()
    tx = injected(sparsifier(cdl_jax.top_k(0.1)))
    step = cdl_jax.make_step(loss_fn, tx)
    state = cdl_jax.init_state(params, tx, model_state={"mean": jnp.zeros(5)})
    state, _ = step(state, None, batches[0])
    hyperparams = dict(state.opt_state.hyperparams, learning_rate=jnp.zeros(()))
    before = jax.tree.map(np.array, state.params)
    frozen = state._replace(opt_state=state.opt_state._replace(hyperparams=hyperparams))
    # The residual still holds earlier steps, so drop it to see the learning rate alone.
    frozen = frozen._replace(opt_state=jax.tree.map(no_residual, frozen.opt_state, is_leaf=is_ours))
    state, _ = step(frozen, None, batches[1])
    assert_same(state.params["w"], before["w"])
    assert step._cache_size() == 1


def is_ours(node):
    return type(node).__name__ == "ErrorFeedbackState"


def no_residual(node):
    if not is_ours(node):
        return node
    return node._replace(residual=jax.tree.map(jnp.zeros_like, node.residual))


def test_an_injected_density_is_refused_or_static():
    params, _ = problem()
    factory = cdl_jax.sparsify_top_k
    with pytest.raises(TypeError, match=r"density must be a Python number.*static_args"):
        lenient(optax.inject_hyperparams(factory)(density=0.1)).init(params)
    tx = under("standard", optax.inject_hyperparams(factory, static_args="density")(density=0.1))
    floats = {"w": params["w"]}
    _, state = tx.update(floats, tx.init(floats), floats)
    check_indices(np.asarray(state.inner_state.indices[0]), 3, 30)
