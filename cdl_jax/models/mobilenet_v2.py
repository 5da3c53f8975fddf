"""MobileNetV2, width 1.0 (Sandler et al., 2018), as torchvision defines it.

Parameter paths joined by dots are torchvision's `state_dict` names, as in `resnet`.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from cdl_jax.models.initializers import kaiming_fan_out
from cdl_jax.models.layers import conv, global_average
from cdl_jax.models.norm import BatchNorm

# expansion, output channels, blocks, stride of the first block
_SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _ConvNormActivation(nn.Module):
    features: int
    size: int
    stride: int = 1
    groups: int = 1
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = conv(
            "0",
            self.features,
            self.size,
            self.stride,
            self.groups,
            kernel_init=kaiming_fan_out,
            formulation=self.formulation,
        )(x)
        return jnp.clip(BatchNorm(name="1")(x, train), 0, 6)


class _InvertedResidualLayers(nn.Module):
    features: int
    stride: int
    expansion: int
    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        hidden = x.shape[-1] * self.expansion
        layer = partial(_ConvNormActivation, hidden, formulation=self.formulation)
        index = 0
        if self.expansion != 1:
            x = layer(1, name="0")(x, train)
            index = 1
        x = layer(3, self.stride, hidden, name=str(index))(x, train)
        options = {"kernel_init": kaiming_fan_out, "formulation": self.formulation}
        x = conv(str(index + 1), self.features, 1, **options)(x)
        return BatchNorm(name=str(index + 2))(x, train)


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (3x3 depthwise), project (1x1); a shortcut where shapes agree."""

    features: int
    stride: int
    expansion: int
    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = _InvertedResidualLayers(
            self.features, self.stride, self.expansion, self.formulation, name="conv"
        )(x, train)
        return x + y if x.shape == y.shape else y


class _Features(nn.Module):
    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        layer = partial(_ConvNormActivation, formulation=self.formulation)
        x = layer(32, 3, 2, name="0")(x, train)
        index = 1
        for expansion, features, depth, stride in _SETTINGS:
            for block in range(depth):
                step = stride if block == 0 else 1
                x = InvertedResidual(features, step, expansion, self.formulation, name=str(index))(
                    x, train
                )
                index += 1
        return layer(1280, 1, name=str(index))(x, train)


class _Head(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Dropout(0.2, deterministic=not train)(x)
        kernel_init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="1")(x)


class MobileNetV2(nn.Module):
    """float32 images [B, H, W, 3] to logits [B, num_classes]; 2,236,682 parameters with 10.

    Training draws dropout masks from the "dropout" key.

    Attributes:
      num_classes: number of logits.
      formulation: how convolutions are computed, see `cdl_jax.models.conv.Conv`.
    """

    num_classes: int = 10
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = _Features(self.formulation, name="features")(x, train)
        return _Head(self.num_classes, name="classifier")(global_average(x), train)
