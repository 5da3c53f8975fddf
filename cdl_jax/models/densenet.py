"""DenseNet161 (Huang, Liu, van der Maaten and Weinberger, 2017), as torchvision defines it.

Parameter paths joined by dots are torchvision's `state_dict` names, as in `resnet`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from cdl_jax.models.initializers import kaiming_fan_in
from cdl_jax.models.layers import conv, dense, global_average
from cdl_jax.models.norm import BatchNorm
from cdl_jax.models.pool import avg_pool, max_pool


class DenseLayer(nn.Module):
    """BN-ReLU-1x1-BN-ReLU-3x3, [B, H, W, C] -> [B, H, W, growth]."""

    growth: int
    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options = {"kernel_init": kaiming_fan_in, "formulation": self.formulation}
        x = nn.relu(BatchNorm(name="norm1")(x, train))
        x = conv("conv1", 4 * self.growth, 1, **options)(x)
        x = nn.relu(BatchNorm(name="norm2")(x, train))
        return conv("conv2", self.growth, 3, **options)(x)


class DenseBlock(nn.Module):
    """`depth` layers, each fed with everything before it, its output appended."""

    depth: int
    growth: int
    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for index in range(self.depth):
            layer = DenseLayer(self.growth, self.formulation, name=f"denselayer{index + 1}")
            x = jnp.concatenate([x, layer(x, train)], axis=-1)
        return x


class Transition(nn.Module):
    """Halves channels, rows and columns."""

    formulation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options = {"kernel_init": kaiming_fan_in, "formulation": self.formulation}
        x = nn.relu(BatchNorm(name="norm")(x, train))
        return avg_pool(conv("conv", x.shape[-1] // 2, 1, **options)(x), 2)


class _Features(nn.Module):
    formulation: str
    growth: int = 48
    depths: tuple[int, ...] = (6, 12, 36, 24)

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options = {"kernel_init": kaiming_fan_in, "formulation": self.formulation}
        x = conv("conv0", 2 * self.growth, 7, 2, **options)(x)
        x = nn.relu(BatchNorm(name="norm0")(x, train))
        x = max_pool(x, 3, 2, padding=1)
        for index, depth in enumerate(self.depths, start=1):
            block = DenseBlock(depth, self.growth, self.formulation, name=f"denseblock{index}")
            x = block(x, train)
            if index < len(self.depths):
                x = Transition(self.formulation, name=f"transition{index}")(x, train)
        return nn.relu(BatchNorm(name="norm5")(x, train))


class DenseNet161(nn.Module):
    """float32 images [B, H, W, 3] to logits [B, num_classes]; 26,494,090 parameters with 10.

    Attributes:
      num_classes: number of logits.
      formulation: how convolutions are computed, see `cdl_jax.models.conv.Conv`.
    """

    num_classes: int = 10
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = _Features(self.formulation, name="features")(x, train)
        return dense("classifier", global_average(x), self.num_classes)
