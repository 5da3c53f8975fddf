"""The step: exactness over many steps, refusal of bad batches, scan and vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cdl_jax
from cdl_jax.core.chain import sparsifier_state, with_room
from cdl_jax.core.tree import is_trainable
from tests.core.helpers import (
    NumpyReplica,
    assert_same,
    bits,
    chained,
    check_indices,
    hex_of,
    sparsifier,
)

DENSITY = 0.05
TOP = sparsifier(cdl_jax.top_k(DENSITY))
GLOBAL = sparsifier(cdl_jax.top_k(DENSITY, scope="global"))
AMSGRAD = chained(optax.amsgrad(1e-2), TOP)


def start(dtype="float32"):
    rng = np.random.default_rng(0)
    odd = rng.normal(size=200).astype(np.float32)
    odd[10:] = 0.0  # the loss reads the first ten alone
    words = [0x80000000, 1, 0x80000001, 0x7F800001, 0xFFC01234, 0x7F800000]
    odd[100:].view(np.uint32)[:] = np.resize(np.array(words, np.uint32), 100)
    params = {
        "hidden": {"w": jnp.asarray(rng.normal(size=(6, 20)), dtype)},
        "out": [jnp.asarray(rng.normal(size=(20, 1)), "float32"), None],
        "odd": jnp.asarray(odd),
        "steps": jnp.zeros((), jnp.int32),
    }
    return params, {"norm": {"moments": jnp.ones((2, 20))}}


def loss_fn(params, model_state, batch, key):
    """A normalised hidden layer, some noise from the key."""
    h = batch["x"] @ params["hidden"]["w"].astype("float32")
    mean, var = h.mean(0), h.var(0)
    h = jnp.tanh((h - mean) / jnp.sqrt(var + 1e-3)) + 0.01 * jax.random.normal(key, h.shape)
    out = (h @ params["out"][0])[:, 0]
    new = {"moments": 0.9 * model_state["norm"]["moments"] + 0.1 * jnp.stack([mean, var])}
    loss = jnp.mean((out - batch["y"]) ** 2) + jnp.mean(params["odd"][:10] ** 2)
    return loss, ({"norm": new}, {"out": out.mean()})


def batches(count, size=8, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x = rng.normal(size=(size, 6)).astype(np.float32)
        yield {"x": x, "y": x[:, 0] - x[:, 1] ** 2}


def begin(tx, dtype="float32", **options):
    params, model_state = start(dtype)
    return cdl_jax.init_state(params, tx, model_state=model_state, key=jax.random.key(3), **options)


def all_but_odd(params):
    """Decayed, a NaN would stay the largest update of its leaf for ever."""
    return {name: jax.tree.map(lambda _, n=name: n != "odd", x) for name, x in params.items()}


OPTIMIZERS = {
    "amsgrad": (AMSGRAD, "float32"),
    "adamw": (chained(optax.adamw(1e-2, weight_decay=0.1, mask=all_but_odd), TOP), "bfloat16"),
    "momentum": (chained(optax.sgd(1e-2, momentum=0.9), GLOBAL), "float32"),
    "lion": (
        chained(optax.clip_by_global_norm(1.0), optax.lion(1e-3, weight_decay=0.0), GLOBAL),
        "float16",
    ),
    "random": (chained(optax.adam(1e-2), sparsifier(cdl_jax.random_k(0.05))), "float32"),
}


PURE = ("amsgrad", "lion")  # where apply_update is followed too, beside its twin in place


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_thirty_steps_replay_exactly_and_change_k_entries(optimizer):
    tx, dtype = OPTIMIZERS[optimizer]
    state, step = begin(tx, dtype), cdl_jax.make_step(loss_fn, tx)
    replica = NumpyReplica(cdl_jax.deployed(state))
    in_place = jax.tree.map(jnp.array, cdl_jax.deployed(state))
    pure, apply = in_place, jax.jit(cdl_jax.apply_update)
    in_place = jax.tree.map(jnp.array, in_place)
    first = {name: x.copy() for name, x in replica.leaves.items()}
    for history, stream in zip(batches(30, seed=2), batches(30), strict=True):
        old = {name: x.copy() for name, x in replica.leaves.items()}
        state, info = step(state, history, stream)
        deployed = cdl_jax.deployed(state)
        pure = apply(pure, info.update) if optimizer in PURE else deployed
        in_place = cdl_jax.apply_update_in_place(in_place, info.update)
        replica.apply(info.update)
        replica.assert_equals(deployed)
        assert_same(pure, deployed)
        assert_same(in_place, deployed)
        at_most_k(old, replica.leaves, scope="global" if info.update.sections[-1][1:] else "tensor")
        assert hex_of(state.digest) == cdl_jax.tree_digest(deployed) == replica.digest()
        np.testing.assert_array_equal(info.update.digest, state.digest)
    assert step._cache_size() == 1
    if optimizer != "random":
        np.testing.assert_array_equal(
            bits(first["params/odd"])[100:], bits(replica.leaves["params/odd"])[100:]
        )
    assert all(
        (bits(x) != bits(first[n])).any() for n, x in replica.leaves.items() if n != "params/steps"
    )


def at_most_k(old, new, scope):
    moved = {n: int((bits(old[n]) != bits(new[n])).sum()) for n in old if n.startswith("params")}
    if scope == "tensor":
        assert all(m <= max(1, int(DENSITY * old[n].size)) for n, m in moved.items())
    floats = sum(old[n].size for n in moved if n != "params/steps")
    assert sum(moved.values()) <= max(5, int(DENSITY * floats))
    assert moved["params/steps"] == 0


def test_quantized_steps_replay_exactly():
    tx = chained(optax.adam(1e-2), sparsifier(cdl_jax.quantize(4)))
    state, step = begin(tx, "bfloat16"), cdl_jax.make_step(loss_fn, tx)
    replica = NumpyReplica(cdl_jax.deployed(state))
    for batch in batches(8):
        state, info = step(state, None, batch)
        replica.apply(info.update)
        replica.assert_equals(cdl_jax.deployed(state))
        assert replica.digest() == hex_of(state.digest)


BAD = {
    "nan_loss": lambda b: {**b, "y": np.full_like(b["y"], np.nan)},
    "inf_loss": lambda b: {**b, "y": np.full_like(b["y"], np.inf)},
    "nan_input": lambda b: {**b, "x": np.full_like(b["x"], np.nan)},
}
SKIP_OPTIMIZERS = {
    "amsgrad": AMSGRAD,
    "quantize": chained(optax.sgd(1e-2, momentum=0.9), sparsifier(cdl_jax.quantize(4))),
}


@pytest.mark.parametrize("optimizer", SKIP_OPTIMIZERS)
def test_a_non_finite_step_changes_nothing_and_the_next_goes_on(optimizer):
    tx = SKIP_OPTIMIZERS[optimizer]
    quiet = lambda p, m, b, key: loss_fn(p, m, b, jax.random.key(0))
    step = cdl_jax.make_step(quiet, tx)
    state, clean = begin(tx), begin(tx)
    good = list(batches(4))
    for batch in good[:2]:
        state, clean = step(state, None, batch)[0], step(clean, None, batch)[0]
    for row, spoil in enumerate(BAD.values(), start=1):
        before = jax.tree.map(np.array, state._replace(key=None))
        state, info = step(state, None, spoil(good[2]))
        refused(before, state, info, row)
    for batch in good[2:]:
        state, info = step(state, None, batch)
        clean, _ = step(clean, None, batch)
        assert not bool(info.skipped)
        assert int(state.skipped_in_a_row) == 0
        same = lambda s: s._replace(key=None, step=0, version=0)
        assert_same_but_scalars(same(state), same(clean))
    assert (int(state.step), int(clean.step)) == (7, 4)
    assert step._cache_size() == 1


def refused(before, state, info, row):
    assert bool(info.skipped)
    assert int(state.skipped_in_a_row) == row
    assert not np.asarray(info.update.counts).any()
    assert not np.isfinite(info.loss) or row == 3
    for name in ("params", "model_state", "served_state", "opt_state", "digest"):
        assert_same(getattr(before, name), jax.tree.map(np.array, getattr(state, name)))
    np.testing.assert_array_equal(info.update.digest, state.digest)


def assert_same_but_scalars(left, right):
    assert_same(
        jax.tree.map(np.asarray, left._replace(step=np.int32(0), version=np.int32(0))),
        jax.tree.map(np.asarray, right._replace(step=np.int32(0), version=np.int32(0))),
    )


def test_a_non_finite_gradient_alone_skips():
    def kink(params, model_state, batch, key):
        return jnp.sum(jnp.sqrt(params["w"] * batch)), (model_state, {})

    tx = chained(optax.adam(1e-2), TOP)
    state = cdl_jax.init_state({"w": jnp.ones(3)}, tx)
    state, info = cdl_jax.make_step(kink, tx)(state, None, jnp.zeros(3))
    assert float(info.loss) == 0
    assert bool(info.skipped)
    assert_same(state.params, {"w": jnp.ones(3)})


def recorded():
    """Adds up, in float32, what the optimizer proposed."""

    def init(params):
        return jax.tree.map(lambda p: jnp.zeros(p.shape), params)

    def update(updates, total, params=None):
        # XLA computes narrow floats wide, and rounds them where it likes: once, here.
        updates = jax.lax.optimization_barrier(updates)
        return updates, jax.tree.map(lambda t, u: t + u.astype("float32"), total, updates)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(("dtype", "scope", "rate"), [
    ("bfloat16", "tensor", 1e-4), ("bfloat16", "global", 1e-1), ("float16", "tensor", 1e-1)
])  # fmt: skip
def test_narrow_parameters_conserve_mass_inside_the_step(dtype, scope, rate):
    tx = chained(
        optax.sgd(rate, momentum=0.9), recorded(), sparsifier(cdl_jax.top_k(0.1, scope=scope))
    )
    state, step = begin(tx, dtype), cdl_jax.make_step(loss_fn, tx)
    first = jax.tree.map(np.array, state.params)
    for batch in batches(60):
        state, _ = step(state, None, batch)
    _, total, feedback = state.opt_state
    residual, proposed = feedback.residual["hidden/w"], wide(total["hidden"]["w"])
    applied = wide(state.params["hidden"]["w"]) - wide(first["hidden"]["w"])
    assert (
        np.abs(applied + wide(residual) - proposed).max() < 60 * 2.0**-23 * np.abs(proposed).max()
    )
    assert np.abs(applied).max() > 0
    assert residual.dtype == jnp.float32


def wide(x):
    return np.asarray(x).astype(np.float64)


def test_history_and_stream_are_one_batch():
    first, second = batches(2)
    both = {name: np.concatenate([first[name], second[name]]) for name in first}
    step = cdl_jax.make_step(loss_fn, AMSGRAD)
    nothing = {name: x[:0] for name, x in first.items()}
    ends = [
        step(begin(AMSGRAD), history, stream)[0].params
        for history, stream in ((first, second), (None, both), (both, nothing))
    ]
    for other in ends[1:]:
        assert_same(ends[0], other)


def test_a_partial_last_trigger_compiles_anew_and_replays():
    step, state = cdl_jax.make_step(loss_fn, AMSGRAD), begin(AMSGRAD)
    replica = NumpyReplica(cdl_jax.deployed(state))
    whole, part = next(batches(1)), next(batches(1, size=3))
    for history, stream in ((whole, whole), (whole, part), (whole, whole)):
        state, info = step(state, history, stream)
        replica.apply(info.update)
        replica.assert_equals(cdl_jax.deployed(state))
    assert step._cache_size() == 2


def test_batches_that_do_not_fit_are_refused():
    step = cdl_jax.make_step(loss_fn, AMSGRAD)
    batch = next(batches(1))
    with pytest.raises(ValueError, match="both None"):
        step(begin(AMSGRAD), None, None)
    with pytest.raises(ValueError, match="batches of one structure"):
        step(begin(AMSGRAD), batch, {"x": batch["x"]})


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda s: s["norm"], "name='moments'"),
    (lambda s: jax.tree.map(lambda x: x.astype("bfloat16"), s), "dtype='bfloat16'"),
    (lambda s: jax.tree.map(lambda x: x[:, :3], s), r"shape=\(2, 3\)"),
    (lambda s: {"norm": tuple(s["norm"].values())}, "name='norm/0'"),
    (lambda s: None, "unlike the one it was given"),
])  # fmt: skip
def test_a_model_state_that_changes_its_looks_is_refused(spoil, says):
    def spoilt(*args):
        loss, (model_state, metrics) = loss_fn(*args)
        return loss, (spoil(model_state), metrics)

    with pytest.raises(ValueError, match=f"loss_fn returned a model state.*{says}"):
        cdl_jax.make_step(spoilt, AMSGRAD)(begin(AMSGRAD), None, next(batches(1)))


@pytest.mark.parametrize("give", [None, {}])
def test_no_model_state_is_none_or_empty(give):
    tx = chained(optax.sgd(0.1), TOP)
    loss = lambda p, m, b, k: (jnp.sum((p - b) ** 2), (give, {}))
    state = cdl_jax.init_state(jnp.ones(4), tx)
    replica = NumpyReplica(cdl_jax.deployed(state))
    state, info = cdl_jax.make_step(loss, tx)(state, None, jnp.zeros(4))
    replica.apply(info.update)
    replica.assert_equals(cdl_jax.deployed(state))
    assert info.update.counts.tolist() == [1]


def test_the_state_is_a_copy_and_the_step_donates_it():
    params, model_state = start()
    key = jax.random.key(9)
    state = cdl_jax.init_state(params, AMSGRAD, model_state=model_state, key=key)
    mine = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.params)]
    new, _ = cdl_jax.make_step(loss_fn, AMSGRAD)(state, None, next(batches(1)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, model_state)))
    assert not key.is_deleted()
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.model_state)))
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(new.params)] == mine


def test_weak_types_and_numpy_arrays_become_strong_arrays():
    def loss(params, model_state, batch, key):
        return params["scale"] * jnp.sum(params["w"] * batch), (model_state + batch[0], {})

    tx = chained(optax.sgd(0.1), TOP)
    params = {"scale": jnp.asarray(2.0), "w": np.ones(3, np.float32)}
    state = cdl_jax.init_state(params, tx, model_state=jnp.asarray(1.0))
    step = cdl_jax.make_step(loss, tx)
    for _ in range(3):
        state, _ = step(state, None, jnp.ones(3))
    assert step._cache_size() == 1


def test_a_step_s_key_is_the_run_s_folded_with_the_step():
    def loss(params, model_state, batch, key):
        return jnp.sum(params * batch), (model_state, {"draw": jax.random.uniform(key)})

    tx, key = chained(optax.sgd(0.1), TOP), jax.random.key(5)
    state = cdl_jax.init_state(jnp.ones(3), tx, key=key)
    step = cdl_jax.make_step(loss, tx)
    for t, batch in enumerate((1.0, jnp.nan, 1.0)):
        state, info = step(state, None, jnp.full(3, batch))
        expected = jax.random.uniform(jax.random.fold_in(key, t))
        assert float(info.metrics["draw"]) == float(expected)


def test_the_version_goes_on_from_the_one_given():
    state, info = cdl_jax.make_step(loss_fn, AMSGRAD)(
        begin(AMSGRAD, version=41), None, next(batches(1))
    )
    assert (int(info.update.base), int(info.update.version), int(state.version)) == (41, 42, 42)


def test_a_leaf_that_cannot_be_deployed_is_named():
    with pytest.raises(ValueError, match="params/key.*cannot be deployed"):
        cdl_jax.init_state({"key": jax.random.key(0), "w": jnp.ones(2)}, AMSGRAD)


def test_a_step_is_a_function_of_state_and_batch():
    step = cdl_jax.make_step(loss_fn, AMSGRAD)
    runs = []
    for _ in range(2):
        state = begin(AMSGRAD)
        for batch in batches(3):
            state, info = step(state, None, batch)
        runs.append((state, info))
    assert_same(*runs)


def test_a_scan_s_updates_replay_exactly():
    feed = list(batches(6))
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *feed)
    one = lambda state, batch: cdl_jax.proactive_step(state, None, batch, loss_fn, AMSGRAD)
    state = begin(AMSGRAD)
    replica = NumpyReplica(cdl_jax.deployed(state))
    last, infos = jax.jit(functools.partial(jax.lax.scan, one))(state, stacked)
    for t in range(6):
        replica.apply(jax.tree.map(lambda x, t=t: x[t], infos.update))
    replica.assert_equals(cdl_jax.deployed(last))
    assert replica.digest() == hex_of(last.digest)
    np.testing.assert_array_equal(infos.update.version, np.arange(1, 7))


def test_seeds_under_vmap_replay_exactly():
    tx = chained(optax.adam(1e-2), GLOBAL)
    params, model_state = start()
    make = lambda key: cdl_jax.init_state(params, tx, model_state=model_state, key=key)
    states = jax.vmap(make)(jax.random.split(jax.random.key(0), 3))
    take = lambda tree, seed: jax.tree.map(lambda x: x[seed], tree)
    replicas = [NumpyReplica(cdl_jax.deployed(take(states, seed))) for seed in range(3)]
    run = lambda state, batch: cdl_jax.proactive_step(state, None, batch, loss_fn, tx)
    step = jax.jit(jax.vmap(run, in_axes=(0, None)))
    for batch in batches(3):
        states, infos = step(states, batch)
        for seed, replica in enumerate(replicas):
            replica.apply(take(infos.update, seed))
            replica.assert_equals(cdl_jax.deployed(take(states, seed)))
    out = np.asarray(states.params["out"][0])
    assert (out[0] != out[1]).any()


def test_indices_are_well_formed_whether_sent_or_skipped():
    step, state = cdl_jax.make_step(loss_fn, AMSGRAD), begin(AMSGRAD)
    good = next(batches(1))
    sizes = [x.size for x in NumpyReplica(cdl_jax.deployed(state)).leaves.values()]
    for batch in (good, BAD["nan_loss"](good)):
        state, info = step(state, None, batch)
        for (place,), indices, count in zip(
            info.update.sections, info.update.indices, info.update.counts.tolist(), strict=True
        ):
            check_indices(np.asarray(indices), count, sizes[place])


def test_a_state_carries_no_selection_and_one_that_was_given_it_is_none_the_worse():
    """Neither do the state's arrays depend on the density: another program goes on with it."""
    step = cdl_jax.make_step(loss_fn, AMSGRAD)
    denser = chained(optax.amsgrad(1e-2), sparsifier(cdl_jax.top_k(4 * DENSITY)))
    states = [cdl_jax.init_state(start()[0], AMSGRAD, model_state=start()[1]) for _ in range(3)]
    inner = sparsifier_state(states[0].opt_state)
    assert (inner.indices, inner.values, inner.scales) == ((), (), ())
    trained = jax.tree.map(lambda x: x if is_trainable(x) else None, start()[0])
    filled = with_room(states[1].opt_state, AMSGRAD.init(trained))
    assert sparsifier_state(filled).indices
    states[1] = states[1]._replace(opt_state=filled)
    for batch in batches(2):
        states[:2], infos = zip(*(step(s, None, batch) for s in states[:2]), strict=True)
        assert_same(states[0], states[1])
        assert_same(infos[0].update, infos[1].update)
    (batch,) = batches(1)
    states[2], info = cdl_jax.make_step(loss_fn, denser)(states[2], None, batch)
    more = int(info.update.counts.sum())
    states[2], info = step(states[2], None, batch)
    assert more > int(info.update.counts.sum()) > 0
    assert sparsifier_state(states[2].opt_state).indices == ()


def test_a_state_carries_the_deployed_model_state_in_few_arrays():
    """By dtype, whatever the number of its leaves; `deployed` gives the containers back."""
    model_state = {"bn": [jnp.arange(6.0).reshape(2, 3), jnp.zeros(())], "n": jnp.arange(4)}
    tx = optax.chain(optax.sgd(1e-2), cdl_jax.sparsify_top_k(0.5))
    state = cdl_jax.init_state({"w": jnp.ones(3)}, tx, model_state=model_state)
    assert len(jax.tree.leaves(state.served_state)) == 2
    served = cdl_jax.deployed(state)["model_state"]
    assert jax.tree.structure(served) == jax.tree.structure(model_state)
    assert [x.shape for x in jax.tree.leaves(served)] == [(2, 3), (), (4,)]
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    for got, want in zip(
        jax.tree.leaves(cdl_jax.deployed(states)), jax.tree.leaves(cdl_jax.deployed(state)),
        strict=True,
    ):  # fmt: skip
        assert got.shape == (2, *want.shape)
        np.testing.assert_array_equal(got[1], want)
