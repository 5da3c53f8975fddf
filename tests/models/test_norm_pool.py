"""BatchNorm and pooling against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.models import BatchNorm
from cdl_jax.models.pool import avg_pool, max_pool


def inputs(offset: float, shape=(8, 5, 4, 7)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * 2 + offset + np.arange(shape[-1])
    return x.astype(np.float32), rng.normal(size=shape).astype(np.float32)


def variables():
    rng = np.random.default_rng(1)
    draw = lambda: jnp.asarray(rng.uniform(0.5, 2, 7), jnp.float32)
    return {
        "params": {"scale": draw(), "bias": draw()},
        "batch_stats": {"mean": draw(), "var": draw()},
    }


@pytest.mark.parametrize(("offset", "rtol"), [(0, 1e-6), (30, 1e-4)])
def test_running_statistics_are_torchs(offset, rtol):
    x, _ = inputs(offset)
    old = variables()
    _, new = BatchNorm().apply(old, x, train=True, mutable=["batch_stats"])
    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2), ddof=1)
    stats = jax.tree.map(np.float64, old["batch_stats"])
    np.testing.assert_allclose(
        new["batch_stats"]["mean"], 0.9 * stats["mean"] + 0.1 * mean, rtol=1e-6
    )
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 * stats["var"] + 0.1 * var, rtol=rtol)


def test_little_cancels_once_the_running_mean_is_near():
    x, _ = inputs(1000)
    old = variables()
    old["batch_stats"]["mean"] = jnp.full(7, 1001.0)
    _, new = BatchNorm(momentum=0).apply(old, x, train=True, mutable=["batch_stats"])
    exact = x.astype(np.float64).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["var"], exact, rtol=1e-4)


def test_outputs_and_gradients_are_exact():
    x, g = inputs(0.3)
    state = variables()

    def run(params, x):
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        return BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])[0]

    y, pull = jax.vjp(run, state["params"], jnp.asarray(x))
    dparams, dx = pull(jnp.asarray(g))
    axes, count = (0, 1, 2), x[..., 0].size
    exact, weights = x.astype(np.float64), g.astype(np.float64)
    inverse = 1 / np.sqrt(exact.var(axes) + 1e-5)
    hat = (exact - exact.mean(axes)) * inverse
    scale, bias = (np.float64(state["params"][k]) for k in ("scale", "bias"))
    np.testing.assert_allclose(y, hat * scale + bias, atol=1e-5)
    np.testing.assert_allclose(dparams["bias"], weights.sum(axes), atol=1e-4)
    np.testing.assert_allclose(dparams["scale"], (weights * hat).sum(axes), atol=1e-4)
    spread = weights.sum(axes) / count + hat * (weights * hat).sum(axes) / count
    np.testing.assert_allclose(dx, scale * inverse * (weights - spread), atol=1e-5)


def test_evaluation_uses_the_running_statistics():
    x, _ = inputs(0.0)
    state = variables()
    stats, params = state["batch_stats"], state["params"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"]
    y = BatchNorm().apply(state, x, train=False)
    np.testing.assert_allclose(y, expected + params["bias"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_max_pool(size, stride, padding):
    x, _ = inputs(-5.0, (2, 7, 8, 3))
    padded = np.pad(x, [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    expected = windows.max((-1, -2))[:, ::stride, ::stride]
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), size, stride, padding), expected)


def test_avg_pool_drops_odd_ends():
    x, _ = inputs(0.0, (2, 5, 4, 3))
    expected = x[:, :4].reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(avg_pool(jnp.asarray(x), 2), expected, atol=1e-6)
