"""Batch normalisation in as few passes over memory as it takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax


def moments(x: Array, shift: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel, x [..., C] -> ([C], [C]), in one pass.

    The squares are taken about `shift` [C], a guess of the mean, so that little cancels.
    """
    axes = tuple(range(x.ndim - 1))
    centred = x - shift
    offset = centred.mean(axes)
    variance = jnp.square(centred).mean(axes) - jnp.square(offset)
    return shift + offset, jnp.maximum(variance, 0)


@jax.custom_vjp
def normalize(x: Array, scale: Array, bias: Array, mean: Array, inverse: Array) -> Array:
    """(x - mean) * inverse * scale + bias, where mean and inverse (1 / deviation) are x's own.

    The gradient counts how the statistics depend on x, and none is given to the statistics.
    """
    factor = scale * inverse
    return x * factor + (bias - mean * factor)


def _normalize_forward(x: Array, scale: Array, bias: Array, mean: Array, inverse: Array):
    return normalize(x, scale, bias, mean, inverse), (x, scale, mean, inverse)


def _normalize_backward(residuals: tuple[Array, Array, Array, Array], g: Array):
    x, scale, mean, inverse = residuals
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    dbias = g.sum(axes)
    dscale = (g * (x - mean)).sum(axes) * inverse
    factor = scale * inverse
    slope = -factor * inverse * dscale / count
    dx = g * factor + (x * slope - (factor * dbias / count + mean * slope))
    return dx, dscale, dbias, jnp.zeros_like(mean), jnp.zeros_like(inverse)


normalize.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy, 2015), as in PyTorch.

    Parameters `scale` and `bias` [C]; running `mean` and `var` [C] in `batch_stats`, where
    `var` is the unbiased variance, as PyTorch keeps it (Flax keeps the biased one).

    Attributes:
      momentum: weight of the old running value; PyTorch's momentum is one minus this.
      epsilon: added to the variance.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            return x * factor + (bias - mean.value * factor)
        batch_mean, batch_var = moments(lax.stop_gradient(x), mean.value)
        count = x.size // x.shape[-1]
        unbiased = batch_var * (count / max(count - 1, 1))
        mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
        var.value = self.momentum * var.value + (1 - self.momentum) * unbiased
        return normalize(x, scale, bias, batch_mean, lax.rsqrt(batch_var + self.epsilon))
