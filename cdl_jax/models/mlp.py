"""A perceptron for flat features."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class MLP(nn.Module):
    """Dense layers with ReLU, over standardised features.

    Attributes:
      num_classes: number of logits.
      formulation: of convolutions, of which there are none.
      mean, std: of the features, one number or one for each.
      widths: of the hidden layers.
    """

    num_classes: int = 10
    formulation: str = "auto"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    widths: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        del train
        x = (x.astype(jnp.float32) - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
