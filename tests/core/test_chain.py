import jax
import jax.numpy as jnp
import optax
import pytest

import cdl_jax
from cdl_jax.core import chain
from tests.core.helpers import chained, lenient, sparsifier

PARAMS = {"a": jnp.ones(4), "b": {"c": jnp.ones((2, 3))}}
TOP = sparsifier(cdl_jax.top_k(0.1))


def frozen_b(inner):
    return optax.partition(
        {"train": inner, "freeze": optax.set_to_zero()},
        lambda p: {"a": "train", "b": jax.tree.map(lambda _: "freeze", p["b"])},
    )


def only(leaf):
    return lambda p: {"a": leaf == "a", "b": {"c": leaf == "b/c"}}


SIGNS = optax.stateless(lambda u, _: jax.tree.map(lambda x: x * (x > 0).astype(x.dtype), u))


@pytest.mark.parametrize(("tx", "a", "c"), [
    (TOP, "sparse", "sparse"),
    (chained(optax.adamw(1e-3), TOP), "sparse", "sparse"),
    (chained(TOP, optax.identity()), "sparse", "sparse"),
    (chained(optax.adam(1e-3), frozen_b(TOP)), "sparse", "still"),
    (chained(frozen_b(optax.sgd(0.1)), optax.masked(TOP, only("a"))), "sparse", "still"),
    (chained(optax.sgd(0.1), optax.masked(TOP, only("a"))), "sparse", "dense"),
    (chained(TOP, optax.masked(optax.add_decayed_weights(0.1), only("b/c"))), "sparse", "dense"),
    (chained(TOP, optax.scale(-1e-3)), "dense", "dense"),
    (chained(TOP, optax.add_decayed_weights(1e-4)), "dense", "dense"),
    (chained(TOP, optax.clip(1.0)), "dense", "dense"),
    (chained(TOP, SIGNS), "dense", "dense"),
    (chained(TOP, optax.adam(1e-3)), "dense", "dense"),
    (lenient(optax.apply_if_finite(chained(optax.sgd(0.1), TOP), 2)), "sparse", "sparse"),
])  # fmt: skip
def test_origins(tx, a, c):
    assert chain.look(tx, PARAMS, tx.init(PARAMS)).origins == {"a": a, "b/c": c}


def silent_every_other(inner):
    """Takes its count back where it was silent, and counts on inside a call."""

    def update(grads, state, params):
        updates, new = inner.update(grads, state, params)
        return updates, new._replace(count=jax.jit(lambda c: c + 1)(new.count - new.count % 2))

    return optax.GradientTransformation(inner.init, update)


@pytest.mark.parametrize(("tx", "always"), [
    (silent_every_other(TOP), False),
    (chained(optax.adamw(1e-3), TOP), True),
    (chained(optax.adam(1e-3), frozen_b(TOP)), True),
    (chained(optax.sgd(0.1), optax.masked(TOP, only("a"))), True),
    (lenient(optax.apply_if_finite(chained(optax.sgd(0.1), TOP), 2)), False),
    (lenient(optax.MultiSteps(chained(optax.sgd(0.1), TOP), 2).gradient_transformation()), False),
    (lenient(optax.conditionally_transform(TOP, lambda step: step % 2 == 0)), False),
])  # fmt: skip
def test_what_sends_in_every_step_is_told_from_what_is_silent_in_some(tx, always):
    assert chain.look(tx, PARAMS, tx.init(PARAMS)).always is always


def test_multi_steps_is_a_gate_whether_wrapped_or_not():
    multi = optax.MultiSteps(chained(optax.sgd(0.1), TOP), 2)
    with jax.numpy_dtype_promotion("standard"):
        for tx in (multi, multi.gradient_transformation()):
            origins = chain.look(tx, PARAMS, tx.init(PARAMS)).origins
            assert set(origins.values()) == {"sparse"}


def test_one_sparsifier_exactly():
    assert chain.sparsifier_state(chained(optax.adam(0.1), TOP).init(PARAMS)).count == 0
    for tx, count in ((optax.adam(0.1), 0), (chained(TOP, optax.sgd(0.1), TOP), 2)):
        with pytest.raises(ValueError, match=f"has {count} sparsifiers.*exactly one, last"):
            chain.sparsifier_state(tx.init(PARAMS))
        assert len(chain.sparsifier_states(tx.init(PARAMS))) == count


def test_a_carried_state_is_filled_with_what_may_be_sent():
    tx = sparsifier(cdl_jax.top_k(0.5, values="int8"))
    state = tx.init(PARAMS)
    carried = chain.without_selection((state, 3))
    assert (carried[0].indices, carried[0].values, carried[0].scales) == ((), (), ())
    filled, three = chain.with_room(carried, jax.eval_shape(lambda: (state, jnp.int32(3))))
    assert three == 3
    assert jax.tree.map(jnp.shape, filled) == jax.tree.map(jnp.shape, state)
    assert all(float(scale) == 1.0 for scale in filled.scales)
