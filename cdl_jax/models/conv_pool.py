"""A convolution with 2x2 max pooling behind it, as one matrix product over blocks of pixels.

With few channels a convolution over pixels is all bookkeeping. Here the input is cut into
blocks of R x R pixels, R even, and the pixels of a block become its channels (space to depth).
One row of the matrix product yields the R x R outputs of a block, ordered so that the four
values of each pooling window lie in four contiguous groups: pooling is a maximum of those.
"""

from functools import reduce

import jax.numpy as jnp
from jax import Array

from cdl_jax.models import formulations as forms


def blocked_pooled(x: Array, kernel: Array, padding: forms.Padding) -> Array:
    """Convolution with unit strides, then 2x2 max pooling: [N, OH // 2, OW // 2, O].

    Rows and columns left over by the pooling are dropped, as PyTorch drops them.
    """
    kh, kw, channels, features = kernel.shape
    size = 4 if channels < 4 else 2
    pooled = [
        forms.output_size(n, k, 1, ends) // 2
        for n, k, ends in zip(x.shape[1:3], (kh, kw), padding, strict=True)
    ]
    blocks = [-(-2 * n // size) for n in pooled]
    reach = tuple(-(-(k + size - 1) // size) for k in (kh, kw))
    x = _to_blocks(x, padding, [b + r - 1 for b, r in zip(blocks, reach, strict=True)], size)
    windows = jnp.concatenate(forms.taps(x, reach, (1, 1)), axis=-1)
    y = forms.matmul(windows.reshape(-1, windows.shape[-1]), _block_kernel(kernel, reach, size))
    y = _group_max(y.reshape(y.shape[0], 4, -1))
    half = size // 2
    y = y.reshape(x.shape[0], *blocks, half, half, features).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(x.shape[0], blocks[0] * half, blocks[1] * half, features)
    return y[:, : pooled[0], : pooled[1]]


def _to_blocks(x: Array, padding: forms.Padding, counts: list[int], size: int) -> Array:
    """Pads or crops to counts * size pixels; [N, rows, columns, size * size * C]."""
    ends = [
        (before, count * size - n - before)
        for n, (before, _), count in zip(x.shape[1:3], padding, counts, strict=True)
    ]
    x = forms.pad(x, (ends[0], ends[1]))
    x = x.reshape(x.shape[0], counts[0], size, counts[1], size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], *counts, -1)


def _block_kernel(kernel: Array, reach: tuple[int, ...], size: int) -> Array:
    """The kernel once for each output of a block: [window pixels * C, 4 * (size / 2)^2 * O]."""
    kh, kw, channels, features = kernel.shape
    height, width = (r * size for r in reach)
    shifted = [
        jnp.pad(kernel, ((i, height - kh - i), (j, width - kw - j), (0, 0), (0, 0)))
        for i in range(size)
        for j in range(size)
    ]
    half = size // 2
    stacked = jnp.stack(shifted).reshape(
        half, 2, half, 2, reach[0], size, reach[1], size, channels, features
    )
    ordered = stacked.transpose(4, 6, 5, 7, 8, 1, 3, 0, 2, 9)
    return ordered.reshape(height * width * channels, -1)


def _group_max(x: Array) -> Array:
    """Maximum over the middle axis, [M, groups, K] -> [M, K]."""
    return reduce(jnp.maximum, (x[:, group] for group in range(x.shape[1])))
