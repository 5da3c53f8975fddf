import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.core.step import init_state
from cdl_jax.models import Classifier
from cdl_jax.train import TrainConfig
from cdl_jax.train.drift import Finding, Watch
from cdl_jax.train.scoring import AT_ONCE
from cdl_jax.train.steps import Steps
from cdl_jax.train.strategies import plan

pytestmark = pytest.mark.usefixtures("standard_promotion")


def loss_fn(params, model_state, batch, key):
    del key
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), (model_state, {})


def predict_fn(params, model_state, inputs):
    del model_state
    return jnp.stack([inputs["x"] @ params["w"], inputs["y"]], axis=-1)


MODEL = Classifier(lambda key, sample: None, loss_fn, predict_fn)


def begin(on_drift):
    config = TrainConfig(on_drift=on_drift, density=0.05, drift_density=0.5, detector="accuracy")
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(4, 60)).astype(np.float32), "y": np.ones(4, np.float32)}
    state = init_state({"w": jnp.ones(60)}, plan(config).tx, key=jax.random.key(0))
    return Steps(config, MODEL), Watch(config), state, batch


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
        state, info = steps.step(state, batch)
        entries.append(int(info().update.counts.sum()))
    assert entries == [3, 3, 30, 30, 3, 3]
    assert sizes(steps) == [1, 1]


def test_another_density_is_compiled_only_where_it_answers():
    steps, _, state, batch = begin("reset")
    steps.warm_up(state, batch)
    assert sizes(steps) == [1, 0]


@pytest.mark.parametrize("many", [5, AT_ONCE + 3])
def test_new_samples_are_scored_by_the_model_before_the_step(many):
    steps, _, state, batch = begin("reset")
    new = {"x": np.tile(batch["x"], (-(-many // 4), 1))[:many], "y": np.zeros(many, np.float32)}
    new["label"] = np.arange(many, dtype=np.int32) % 2
    steps.warm_up(state, batch, new)
    compiled = sizes(steps)
    before = jax.tree.map(np.array, state.params)
    state, outcome = steps.take(state, batch, new)
    scores, info = outcome()
    logits = np.stack([new["x"] @ before["w"], new["y"]], axis=-1).astype(np.float64)
    loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(many), new["label"]]
    np.testing.assert_array_equal(scores.right, logits.argmax(-1) == new["label"])
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-4, atol=1e-5)
    assert int(info.update.version) == 1
    assert (np.asarray(state.params["w"]) != before["w"]).any()
    assert sizes(steps) == compiled
