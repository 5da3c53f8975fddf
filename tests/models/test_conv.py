"""Every formulation against `lax.conv_general_dilated`, forward and both gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cdl_jax.models import Conv, ConvSpec, conv2d
from cdl_jax.models.conv import choose

# batch, height, width, channels, features, kernel, stride, padding, groups -> the CPU's choice
SHAPES = {
    (3, 28, 28, 1, 6, 5, 1, 2, 1): "banded",  # LeNet5
    (2, 14, 14, 6, 16, 5, 1, 0, 1): "banded",
    (2, 32, 32, 3, 8, 7, 2, 3, 1): "banded",  # the stem of ResNet and DenseNet
    (2, 32, 32, 3, 8, 3, 2, 1, 1): "banded",  # of MobileNetV2
    (1, 11, 7, 5, 3, 3, 2, 0, 1): "banded",
    (2, 8, 8, 12, 9, 3, 1, 1, 1): "native",
    (2, 7, 9, 12, 9, 3, 2, 1, 1): "native",
    (4, 4, 4, 12, 8, 3, 2, 1, 1): "live_taps",
    (4, 2, 2, 12, 9, 3, 1, 1, 1): "live_taps",
    (4, 2, 2, 9, 12, 3, 2, 1, 1): "live_taps",
    (5, 1, 1, 16, 9, 3, 1, 1, 1): "live_taps",
    (2, 3, 9, 4, 6, 5, 2, 3, 1): "live_taps",
    (2, 8, 8, 12, 7, 1, 1, 0, 1): "pointwise",
    (2, 7, 8, 12, 7, 1, 2, 0, 1): "pointwise",
    (1, 5, 5, 3, 7, 1, 1, 1, 1): "pointwise",
    (2, 8, 8, 12, 12, 3, 1, 1, 12): "depthwise",
    (2, 7, 8, 12, 12, 3, 2, 1, 12): "depthwise",
    (2, 1, 1, 12, 12, 3, 1, 1, 12): "depthwise",
    (2, 6, 6, 12, 18, 3, 1, 1, 3): "native",
}


def spec(stride: int, padding: int, groups: int, **options) -> ConvSpec:
    ends = (padding, padding)
    return ConvSpec(strides=(stride, stride), padding=(ends, ends), groups=groups, **options)


def reference(x, kernel, stride, padding, groups, pool=False):
    y = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    window = (1, 2, 2, 1)
    return lax.reduce_window(y, -jnp.inf, lax.max, window, window, "VALID") if pool else y


def arrays(n, h, w, channels, features, size, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, h, w, channels))
    kernel = rng.normal(size=(size, size, channels // groups, features))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def assert_same(run, expected, x, kernel):
    def with_gradients(run, x, kernel):
        y, pull = jax.vjp(run, x, kernel)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return y, *pull(weights)

    got = jax.jit(partial(with_gradients, run))(x, kernel)
    want = jax.jit(partial(with_gradients, expected))(x, kernel)
    for a, b in zip(got, want, strict=True):
        scale = float(jnp.abs(b).max()) + 1
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_automatic_choice(shape):
    *sizes, stride, padding, groups = shape
    x, kernel = arrays(*sizes, groups)
    settings = spec(stride, padding, groups)
    assert choose(x.shape, kernel.shape, settings) == SHAPES[shape]
    expected = partial(reference, stride=stride, padding=padding, groups=groups)
    assert_same(lambda x, k: conv2d(x, k, settings), expected, x, kernel)


@pytest.mark.parametrize("formulation", ["slices", "banded", "live_taps", "native", "scan"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[-1] == 1 and s[5] > 1 and s[1] < 12])
def test_each_formulation_holds_for_any_shape(shape, formulation):
    *sizes, stride, padding, _ = shape
    x, kernel = arrays(*sizes, 1)
    settings = spec(stride, padding, 1, formulation=formulation)
    expected = partial(reference, stride=stride, padding=padding, groups=1)
    assert_same(lambda x, k: conv2d(x, k, settings), expected, x, kernel)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 28, 28, 1, 6, 5, 1, 2),
        (2, 14, 14, 6, 16, 5, 1, 0),
        (2, 13, 15, 3, 4, 3, 1, 1),
        (1, 9, 8, 2, 4, 4, 1, 2),
        (2, 8, 8, 12, 9, 3, 1, 1),
        (2, 16, 16, 3, 4, 3, 2, 1),
    ],
)
def test_convolution_with_pooling(shape):
    *sizes, stride, padding = shape
    x, kernel = arrays(*sizes, 1)
    settings = spec(stride, padding, 1, max_pool=True)
    expected = partial(reference, stride=stride, padding=padding, groups=1, pool=True)
    assert_same(lambda x, k: conv2d(x, k, settings), expected, x, kernel)


def test_scan_never_runs_xlas_convolution_on_a_cpu():
    x, kernel = arrays(2, 8, 8, 12, 9, 3, 1)
    settings = spec(1, 1, 1, formulation="scan")
    lowered = jax.jit(lambda x, k: conv2d(x, k, settings)).trace(x, kernel)
    for platform, convolves in (("cpu", False), ("cuda", True)):
        text = lowered.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == convolves


def test_works_under_vmap():
    x, kernel = arrays(6, 4, 4, 9, 8, 3, 1)
    settings = spec(2, 1, 1)
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    got = jax.vmap(lambda x, k: conv2d(x, k, settings))(x.reshape(3, 2, 4, 4, 9), kernels)
    want = [reference(x[2 * i : 2 * i + 2], k, 2, 1, 1) for i, k in enumerate(kernels)]
    np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-5, atol=1e-4)


def test_unknown_formulation_is_refused():
    with pytest.raises(ValueError, match=r"'winograd'; it must be one of auto, scan, native"):
        ConvSpec(formulation="winograd")


def test_layer_has_the_parameters_of_flax():
    layer = Conv(6, (3, 3), padding=(1, 1), use_bias=True)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))["params"]
    assert {k: v.shape for k, v in params.items()} == {"kernel": (3, 3, 4, 6), "bias": (6,)}
