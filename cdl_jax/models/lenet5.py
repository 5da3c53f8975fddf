"""LeNet5 with ReLU and max pooling (LeCun, Bottou, Bengio and Haffner, 1998)."""

import flax.linen as nn
from jax import Array

from cdl_jax.models.conv import Conv
from cdl_jax.models.initializers import torch_bias, torch_default
from cdl_jax.models.layers import dense


class LeNet5(nn.Module):
    """Two convolutions and three dense layers: 61,706 parameters with 10 classes.

    Images are float32[B, 28, 28, 1], logits float32[B, num_classes]. PyTorch flattens
    channels first, so the rows of its `fc1.weight` are permuted against `fc1/kernel`.

    Attributes:
      num_classes: number of logits.
      formulation: how convolutions are computed, see `cdl_jax.models.conv.Conv`.
    """

    num_classes: int = 10
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        del train  # there is neither dropout nor BatchNorm
        # ReLU after pooling is the same, and a quarter of the work.
        x = nn.relu(self._conv("conv1", x, features=6, padding=2))
        x = nn.relu(self._conv("conv2", x, features=16, padding=0))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(dense("fc1", x, 120))
        x = nn.relu(dense("fc2", x, 84))
        return dense("fc3", x, self.num_classes)

    def _conv(self, name: str, x: Array, features: int, padding: int) -> Array:
        return Conv(
            features,
            (5, 5),
            padding=(padding, padding),
            max_pool=True,
            use_bias=True,
            kernel_init=torch_default,
            bias_init=torch_bias(25 * x.shape[-1]),
            formulation=self.formulation,
            name=name,
        )(x)
