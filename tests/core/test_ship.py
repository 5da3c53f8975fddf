"""What travels: sparse, changed and dense updates, model state, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cdl_jax
from tests.core.helpers import NumpyReplica, assert_same, bits, chained, hex_of, sparsifier

TOP = sparsifier(cdl_jax.top_k(0.1))


def start():
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(8, 4)), "float32"),
        "h": jnp.asarray(rng.normal(size=20), "bfloat16"),
        "idle": jnp.asarray(np.resize(np.array([-0.0, 1e-40, 2.0], np.float32), 12)),
        "n": jnp.arange(3),
        "none": None,
    }
    state = {"mean": jnp.zeros(30), "seen": jnp.zeros((), jnp.int32), "flags": jnp.zeros(3, bool)}
    batch = jnp.asarray(rng.normal(size=(5, 8)), "float32")
    return params, state, batch


def loss_fn(params, model_state, batch, key):
    out = batch @ params["w"]
    half = params["h"].astype("float32")
    mean = model_state["mean"].at[jnp.arange(4)].add(out.mean(0))
    seen = model_state["seen"] + 1
    new = {"mean": mean, "seen": seen, "flags": model_state["flags"].at[seen % 3].set(True)}
    loss = jnp.mean((out - 1) ** 2) + jnp.mean((half - 0.5) ** 2)
    return loss + 0 * jnp.sum(params["idle"]), (new, {})


def follow(tx, steps=4, **options):
    """Runs and replays; yields the deployed trees around each step and its info."""
    params, model_state, batch = start()
    state = cdl_jax.init_state(params, tx, model_state=model_state)
    step = cdl_jax.make_step(loss_fn, tx, **options)
    replica = NumpyReplica(cdl_jax.deployed(state))
    out = []
    for _ in range(steps):
        before = jax.tree.map(np.array, cdl_jax.deployed(state))
        state, info = step(state, None, batch)
        after = jax.tree.map(np.array, cdl_jax.deployed(state))
        replica.apply(info.update)
        replica.assert_equals(after)
        assert cdl_jax.tree_digest(after) == cdl_jax.tree_digest(cdl_jax.deployed(state))
        np.testing.assert_array_equal(info.update.digest, state.digest)
        out.append((before, after, info))
    assert step._cache_size() == 1
    assert cdl_jax.tree_digest(after) == hex_of(state.digest)
    return out


CHAINS = {
    "adam": chained(optax.adam(1e-2)),
    "paper": chained(TOP, optax.adam(1e-2)),
    "decay_behind": chained(TOP, optax.add_decayed_weights(1e-2)),
    "two": chained(TOP, optax.sgd(0.1), TOP),
    "last": chained(optax.sgd(0.1), TOP),
}


@pytest.mark.parametrize("tx", ["adam", "paper", "decay_behind"])
def test_changed_is_the_bitwise_difference(tx):
    for before, after, info in follow(CHAINS[tx], update="changed"):
        names = list(NumpyReplica(before).leaves)
        old, new = (list(NumpyReplica(t).leaves.values()) for t in (before, after))
        sections = [names[place] for (place,) in info.update.sections]
        assert sections == [n for n in names if n != "params/n"]
        for (place,), indices, count in zip(
            info.update.sections, info.update.indices, info.update.counts.tolist(), strict=True
        ):
            differ = np.flatnonzero(bits(old[place]) != bits(new[place]))
            np.testing.assert_array_equal(indices[:count], differ)


def test_the_paper_s_order_changes_few_entries_at_first():
    (before, after, _), *_ = follow(chained(TOP, optax.sgd(0.1)), steps=1, update="changed")
    moved = (bits(before["params"]["w"]) != bits(after["params"]["w"])).sum()
    assert 0 < moved <= 3


def test_dense_ships_whole_leaves():
    for _, _, info in follow(CHAINS["adam"], steps=2, update="dense"):
        sizes = [indices.size for indices in info.update.indices]
        assert info.update.counts.tolist() == sizes


def test_a_sparse_update_keeps_what_it_does_not_select():
    tx = chained(optax.amsgrad(1e-2), TOP)
    first, *_, last = follow(tx, steps=6)
    k = {"w": 3, "h": 2, "idle": 1}
    for name, most in k.items():
        assert (bits(first[0]["params"][name]) != bits(first[1]["params"][name])).sum() <= most
    # Zero gradients tie: the lowest entry is the one that a sum with zero may rewrite.
    idle = [bits(tree["params"]["idle"])[1:] for tree in (first[0], last[1])]
    np.testing.assert_array_equal(*idle)
    assert_same(first[0]["params"]["n"], last[1]["params"]["n"])


@pytest.mark.parametrize(("density", "most"), [(None, 2), (0.05, 1), (1.0, 30)])
def test_model_state_density(density, most):
    tx = chained(optax.sgd(0.1), TOP)
    for before, after, info in follow(tx, model_state_density=density):
        moved = (bits(before["model_state"]["mean"]) != bits(after["model_state"]["mean"])).sum()
        counts = dict(zip(info.update.sections, info.update.counts.tolist(), strict=True))
        assert 0 < moved <= most
        assert counts[(1,)] == most
        assert counts[(2,)] == 1
    assert after["model_state"]["seen"] == 4


def test_the_entries_that_moved_most_travel_and_the_rest_catches_up():
    def drift(params, model_state, batch, key):
        return jnp.sum(params["w"] ** 2), (jax.tree.map(lambda x: x + RATES, model_state), {})

    rates = np.array([1, 3, 2, 1.5], np.float32)
    RATES = jnp.asarray(rates)
    tx = chained(optax.sgd(0.1), TOP)
    state = cdl_jax.init_state({"w": jnp.ones(3)}, tx, model_state=jnp.zeros(4))
    step = cdl_jax.make_step(drift, tx, model_state_density=0.25)
    served, trained = np.zeros(4, np.float32), np.zeros(4, np.float32)
    for _ in range(6):
        state, _ = step(state, None, jnp.zeros(1))
        trained += rates
        chosen = np.argmax(np.abs(trained - served))
        served[chosen] = trained[chosen]
        np.testing.assert_array_equal(state.model_state, trained)
        np.testing.assert_array_equal(cdl_jax.deployed(state)["model_state"], served)


@pytest.mark.parametrize(("tx", "says"), [
    (chained(TOP, optax.add_decayed_weights(1e-2)), "changes h, idle, w behind or beside"),
    (chained(TOP, optax.scale(-0.1)), "changes h, idle, w behind or beside"),
    (optax.sgd(0.1), "has 0 sparsifiers.*update='dense'.* for none and update='changed'"),
    (CHAINS["two"], "has 2 sparsifiers"),
])  # fmt: skip
def test_chains_that_cannot_be_sparse_are_refused(tx, says):
    with pytest.raises(ValueError, match=says):
        follow(tx, steps=1)


def test_weight_decay_behind_the_sparsifier_ships_whole_when_asked():
    tx = chained(optax.sgd(0.1), TOP, optax.add_decayed_weights(-1e-2))
    for _, _, info in follow(tx, steps=2, uncovered="ship"):
        params = [
            c
            for (p,), c in zip(info.update.sections, info.update.counts.tolist(), strict=True)
            if p > 2
        ]
        assert params == [20, 12, 32]


def test_global_scope_cannot_ship_a_part_whole():
    everything_but_h = lambda p: {
        name: jax.tree.map(lambda _, n=name: n != "h", x) for name, x in p.items()
    }
    mixed = optax.masked(optax.add_decayed_weights(1e-2), everything_but_h)
    tx = chained(sparsifier(cdl_jax.top_k(0.1, scope="global")), mixed)
    with pytest.raises(ValueError, match="use scope='tensor'"):
        follow(tx, steps=1, uncovered="ship")


def test_frozen_leaves_are_accepted_and_stay():
    labels = lambda p: {name: "freeze" if name == "w" else "train" for name in p}
    inner = {"train": chained(optax.adam(1e-2), TOP), "freeze": optax.set_to_zero()}
    for before, after, info in follow(chained(optax.partition(inner, labels))):
        assert_same(before["params"]["w"], after["params"]["w"])
        assert [p for (p,) in info.update.sections] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("options", "says"), [
    ({"update": "all"}, "update is 'all'; give 'sparse', 'dense' or 'changed'"),
    ({"model_state_density": 0.0}, "density is 0.0"),
    ({"model_state_density": 2}, "density is 2"),
])  # fmt: skip
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        follow(CHAINS["last"], steps=1, **options)
