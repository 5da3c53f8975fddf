"""ResNet18 and ResNet50 (He, Zhang, Ren and Sun, 2016), as torchvision defines them.

Parameter paths joined by dots are torchvision's `state_dict` names, with `kernel` and `scale`
for `weight`, and in `batch_stats` `mean` and `var` for `running_mean` and `running_var`.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jax import Array

from cdl_jax.models.initializers import kaiming_fan_out
from cdl_jax.models.layers import conv, dense, global_average
from cdl_jax.models.norm import BatchNorm
from cdl_jax.models.pool import max_pool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, [B, H, W, C] -> [B, H / stride, W / stride, width]."""

    width: int
    stride: int
    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        make = partial(conv, kernel_init=kaiming_fan_out, formulation=self.formulation)
        y = make("conv1", self.width, 3, self.stride)(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train))
        y = make("conv2", self.width, 3)(y)
        y = BatchNorm(name="bn2")(y, train)
        return nn.relu(y + _shortcut(make, x, self.width, self.stride, train))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to 4 * width channels, and a shortcut (v1.5)."""

    width: int
    stride: int
    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        make = partial(conv, kernel_init=kaiming_fan_out, formulation=self.formulation)
        y = make("conv1", self.width, 1)(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train))
        y = make("conv2", self.width, 3, self.stride)(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train))
        y = make("conv3", 4 * self.width, 1)(y)
        y = BatchNorm(name="bn3")(y, train)
        return nn.relu(y + _shortcut(make, x, 4 * self.width, self.stride, train))


class _Downsample(nn.Module):
    conv: Callable[..., nn.Module]
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.conv("0", self.features, 1, self.stride)(x)
        return BatchNorm(name="1")(y, train)


def _shortcut(
    make: Callable[..., nn.Module], x: Array, features: int, stride: int, train: bool
) -> Array:
    if stride == 1 and x.shape[-1] == features:
        return x
    return _Downsample(make, features, stride, name="downsample")(x, train)


class _Stage(nn.Module):
    block: type[BasicBlock] | type[Bottleneck]
    width: int
    depth: int
    stride: int
    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for index in range(self.depth):
            stride = self.stride if index == 0 else 1
            x = self.block(self.width, stride, self.formulation, name=str(index))(x, train)
        return x


class ResNet(nn.Module):
    """float32 images [B, H, W, 3] to float32 logits [B, num_classes].

    Attributes:
      block: `BasicBlock` or `Bottleneck`.
      depths: blocks in each of the four stages.
      num_classes: number of logits.
      formulation: how convolutions are computed, see `cdl_jax.models.conv.Conv`.
    """

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    num_classes: int = 10
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        options = {"kernel_init": kaiming_fan_out, "formulation": self.formulation}
        x = conv("conv1", 64, 7, 2, **options)(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        x = max_pool(x, 3, 2, padding=1)
        for stage, depth in enumerate(self.depths):
            x = _Stage(
                self.block,
                width=64 * 2**stage,
                depth=depth,
                stride=1 if stage == 0 else 2,
                formulation=self.formulation,
                name=f"layer{stage + 1}",
            )(x, train)
        return dense("fc", global_average(x), self.num_classes)


def resnet18(num_classes: int = 10, formulation: str = "auto") -> ResNet:
    """11,181,642 parameters with 10 classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, formulation)


def resnet50(num_classes: int = 10, formulation: str = "auto") -> ResNet:
    """23,528,522 parameters with 10 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, formulation)
