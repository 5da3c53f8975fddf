"""Convolution written in other operations, each the fastest for some shapes on a CPU.

Every function takes an NHWC input [N, H, W, C], an HWIO kernel [KH, KW, C, O], strides
(rows, columns) and padding ((top, bottom), (left, right)), and returns what
`lax.conv_general_dilated` returns, [N, OH, OW, O], up to rounding. All but `native` and
`depthwise` are written for one group.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def output_size(size: int, kernel: int, stride: int, padding: Pair) -> int:
    """Number of outputs along one axis."""
    return (size + sum(padding) - kernel) // stride + 1


@jax.custom_vjp
def matmul(x: Array, w: Array) -> Array:
    """`x @ w` for a tall x [M, K] and w [K, O], with the weight gradient as (g^T x)^T.

    XLA's CPU backend runs the usual x^T g at a tenth of the speed when M is large.
    """
    return lax.dot(x, w)


def _matmul_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return lax.dot(x, w), (x, w)


def _matmul_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = residuals
    dx = lax.dot_general(g, w, (((1,), (1,)), ((), ())))
    dw = lax.dot_general(g, x, (((0,), (0,)), ((), ())))
    return dx, dw.T


matmul.defvjp(_matmul_forward, _matmul_backward)


def native(x: Array, kernel: Array, strides: Pair, padding: Padding, groups: int = 1) -> Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def pointwise(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """A 1x1 kernel: strided slice, then one matrix product."""
    x = pad(x, padding)[:, :: strides[0], :: strides[1]]
    y = matmul(x.reshape(-1, x.shape[-1]), kernel.reshape(kernel.shape[-2:]))
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def slices(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """All taps side by side (im2col), then one matrix product."""
    shifted = taps(pad(x, padding), kernel.shape[:2], strides)
    columns = jnp.concatenate(shifted, axis=-1)
    y = matmul(columns.reshape(-1, columns.shape[-1]), kernel.reshape(-1, kernel.shape[-1]))
    return y.reshape(*columns.shape[:-1], kernel.shape[-1])


def depthwise(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """One filter per channel, kernel [KH, KW, 1, C]: shifted slices times their weights."""
    shifted = taps(pad(x, padding), kernel.shape[:2], strides)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum((tap * weights[i] for i, tap in enumerate(shifted[1:], 1)), shifted[0] * weights[0])


def live_taps(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """One matrix product per output position, over the taps that meet a real pixel there.

    For inputs or outputs smaller than the kernel, where most taps see only padding.
    """
    axes = [
        _live_ranges(*axis)
        for axis in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    ]
    outputs = [
        matmul(
            x[:, pixels_h, pixels_w].reshape(x.shape[0], -1),
            kernel[taps_h, taps_w].reshape(-1, kernel.shape[-1]),
        )
        for pixels_h, taps_h in axes[0]
        for pixels_w, taps_w in axes[1]
    ]
    y = jnp.stack(outputs, axis=1)
    return y.reshape(x.shape[0], len(axes[0]), len(axes[1]), kernel.shape[-1])


def _live_ranges(size: int, kernel: int, stride: int, padding: Pair) -> list[tuple[slice, slice]]:
    """For each output along one axis: the pixels it sees and the taps that see them."""
    ranges = []
    for index in range(output_size(size, kernel, stride, padding)):
        start = index * stride - padding[0]
        low = min(max(0, -start), kernel)
        high = max(low, min(kernel, size - start))
        first = min(max(start, 0), size)
        ranges.append((slice(first, first + high - low), slice(low, high)))
    return ranges


def banded(x: Array, kernel: Array, strides: Pair, padding: Padding, width: int) -> Array:
    """`width` neighbouring outputs of a row per row of one matrix product.

    The kernel is laid out as a band, [KH * span * C, width * O] with
    span = (width - 1) * stride + KW, so few input channels still fill the product.
    """
    (kh, kw, _, features), (sh, sw) = kernel.shape, strides
    rows = output_size(x.shape[1], kh, sh, padding[0])
    columns = output_size(x.shape[2], kw, sw, padding[1])
    windows = _windows(x, kw, sw, padding, width, blocks=-(-columns // width))
    windows = jnp.concatenate(
        [windows[:, i : i + (rows - 1) * sh + 1 : sh] for i in range(kh)], axis=-1
    )
    y = matmul(windows.reshape(-1, windows.shape[-1]), _band(kernel, sw, width))
    return y.reshape(x.shape[0], rows, -1, features)[:, :, :columns]


def _windows(x: Array, kw: int, stride: int, padding: Padding, width: int, blocks: int) -> Array:
    """Overlapping runs of each padded row: [N, H + padding, blocks, span * C]."""
    n, _, w, c = x.shape
    step, span = width * stride, (width - 1) * stride + kw
    pieces = -(-span // step)
    right = (blocks - 1 + pieces) * step - w - padding[1][0]
    x = pad(x, (padding[0], (padding[1][0], right)))
    x = x.reshape(n, x.shape[1], -1, step * c)
    runs = [x[:, :, i : i + blocks, : min(step, span - i * step) * c] for i in range(pieces)]
    return jnp.concatenate(runs, axis=-1)


def _band(kernel: Array, stride: int, width: int) -> Array:
    kh, kw, c, features = kernel.shape
    span = (width - 1) * stride + kw
    shifted = [
        jnp.pad(kernel, ((0, 0), (b * stride, span - kw - b * stride), (0, 0), (0, 0)))
        for b in range(width)
    ]
    return jnp.stack(shifted, axis=3).reshape(kh * span * c, width * features)


def pad(x: Array, padding: Padding, value: float = 0.0) -> Array:
    """Pads rows and columns with `value`; a negative amount crops."""
    if not any(padding[0] + padding[1]):
        return x
    config = ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def taps(x: Array, size: tuple[int, ...], strides: Pair) -> list[Array]:
    """The input under each tap of a kernel of that size, row by row: [N, OH, OW, C] each."""
    (sh, sw), (h, w) = strides, x.shape[1:3]
    rows, columns = (h - size[0]) // sh * sh + 1, (w - size[1]) // sw * sw + 1
    return [
        x[:, i : i + rows : sh, j : j + columns : sw]
        for i in range(size[0])
        for j in range(size[1])
    ]
