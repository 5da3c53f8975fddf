import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.core.step import init_state
from cdl_jax.train import TrainConfig
from cdl_jax.train.drift import Finding, Watch
from cdl_jax.train.steps import Steps
from cdl_jax.train.strategies import plan

pytestmark = pytest.mark.usefixtures("standard_promotion")


def loss_fn(params, model_state, batch, key):
    del key
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), (model_state, {})


def begin(on_drift):
    config = TrainConfig(on_drift=on_drift, density=0.05, drift_density=0.5, detector="accuracy")
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(4, 60)).astype(np.float32), "y": np.ones(4, np.float32)}
    state = init_state({"w": jnp.ones(60)}, plan(config).tx, key=jax.random.key(0))
    return Steps(config, loss_fn), Watch(config), state, batch


def sizes(steps):
    """Compiled programs of the usual step, and of the other."""
    return [program._cache_size() for program in steps._compiled.values()]


def test_the_answer_of_another_density_is_compiled_before_it_is_wanted():
    steps, watch, state, batch = begin("density+reset")
    before = jax.tree.map(np.array, state.params)
    steps.warm_up(state, batch)
    assert (np.asarray(state.params["w"]) == before["w"]).all()
    assert sizes(steps) == [1, 1]
    entries = []
    watch.found.append(Finding(1, 400))
    for version in range(1, 7):
        state = steps.prepare(state, watch, version, 100 * (version - 1))
        state, info = steps.take(state, batch)
        entries.append(int(info().update.counts.sum()))
    assert entries == [3, 3, 30, 30, 3, 3]
    assert sizes(steps) == [1, 1]


def test_another_density_is_compiled_only_where_it_answers():
    steps, _, state, batch = begin("reset")
    steps.warm_up(state, batch)
    assert sizes(steps) == [1, 0]
