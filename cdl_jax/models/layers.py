"""Layers that several models share."""

import flax.linen as nn
from jax import Array

from cdl_jax.models.conv import Conv
from cdl_jax.models.initializers import torch_bias, torch_default


def conv(name: str, features: int, size: int, stride: int = 1, groups: int = 1, **options) -> Conv:
    """A square convolution without bias that keeps the size at stride 1."""
    padding = (size // 2, size // 2)
    return Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=padding,
        groups=groups,
        name=name,
        **options,
    )


def dense(name: str, x: Array, features: int) -> Array:
    """A dense layer with PyTorch's default initialisation, [B, K] -> [B, features]."""
    bias_init = torch_bias(x.shape[-1])
    return nn.Dense(features, kernel_init=torch_default, bias_init=bias_init, name=name)(x)


def global_average(x: Array) -> Array:
    """[B, H, W, C] -> [B, C]."""
    return x.mean((1, 2))
