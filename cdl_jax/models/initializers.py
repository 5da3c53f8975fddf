"""PyTorch's default initialisation, in Flax's terms."""

from typing import Any

import jax
from flax.linen import initializers
from jax import Array
from jax.nn.initializers import Initializer

# nn.Conv2d and nn.Linear: kaiming_uniform with a = sqrt(5), that is U(-b, b), b = fan_in^-1/2.
torch_default: Initializer = initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# torchvision's ResNet and MobileNetV2, and its DenseNet.
kaiming_fan_out: Initializer = initializers.variance_scaling(2.0, "fan_out", "normal")
kaiming_fan_in: Initializer = initializers.variance_scaling(2.0, "fan_in", "normal")


def torch_bias(fan_in: int) -> Initializer:
    """U(-b, b) with b = fan_in^-1/2, the default bias of nn.Conv2d and nn.Linear."""

    def init(key: Array, shape: Any, dtype: Any = float, out_sharding: Any = None) -> Array:
        del out_sharding
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
