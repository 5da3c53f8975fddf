"""One convolution layer that takes the fastest formulation for its shape on a CPU.

XLA's CPU convolution has pathological shapes, worst in the gradients. Each shape is given
the formulation that measured best, while accelerators keep XLA's own convolution. The choice
is made per platform when the program is lowered, so one traced step serves them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from cdl_jax.models import formulations as forms
from cdl_jax.models.conv_pool import blocked_pooled
from cdl_jax.models.pool import max_pool

FORMULATIONS = (
    "auto",
    "scan",
    "native",
    "slices",
    "pointwise",
    "depthwise",
    "banded",
    "live_taps",
    "blocked",
)


@dataclass(frozen=True, kw_only=True)
class ConvSpec:
    """What a convolution computes, and how.

    Attributes:
      strides: rows and columns.
      padding: zeros before and after the rows, and the columns.
      groups: feature groups.
      max_pool: whether 2x2 max pooling follows.
      formulation: one of `FORMULATIONS`.
    """

    strides: forms.Pair = (1, 1)
    padding: forms.Padding = ((0, 0), (0, 0))
    groups: int = 1
    max_pool: bool = False
    formulation: str = "auto"

    def __post_init__(self) -> None:
        if self.formulation not in FORMULATIONS:
            raise ValueError(
                f"formulation is {self.formulation!r}; it must be one of {', '.join(FORMULATIONS)}"
            )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x: Array, kernel: Array, spec: ConvSpec) -> Array:
    """Two-dimensional convolution as `lax.conv_general_dilated` defines it.

    Args:
      x: input, [N, H, W, C].
      kernel: [KH, KW, C / groups, O], of x's dtype.
      spec: strides, padding, groups and formulation. `"auto"` takes the fastest one on a CPU
        and XLA's own elsewhere; `"scan"` is the same for the body of a `lax.scan`, where XLA's
        own is 27 times slower on a CPU; any other name holds on every platform.

    Returns:
      [N, OH, OW, O], of x's dtype.
    """
    return _by_platform(partial(_apply, spec=spec), spec, x, kernel)


def _forward(x: Array, kernel: Array, spec: ConvSpec) -> tuple[Array, tuple[Array, Array]]:
    return conv2d(x, kernel, spec), (x, kernel)


def _backward(spec: ConvSpec, residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    def gradients(x: Array, kernel: Array, g: Array, formulation: str) -> tuple[Array, Array]:
        run = partial(_apply, spec=spec, formulation=formulation)
        return jax.vjp(run, x, kernel)[1](g)

    return _by_platform(gradients, spec, *residuals, g)


conv2d.defvjp(_forward, _backward)


def _by_platform(run: Any, spec: ConvSpec, x: Array, kernel: Array, *rest: Array) -> Any:
    """Runs `run` with the formulation that each platform is to use."""
    name = spec.formulation
    if name in ("auto", "scan"):
        name = choose(x.shape, kernel.shape, spec)
        if name != "native":
            return lax.platform_dependent(
                x,
                kernel,
                *rest,
                cpu=partial(run, formulation=name),
                default=partial(run, formulation="native"),
            )
    return run(x, kernel, *rest, formulation=name)


def choose(x_shape: Sequence[int], kernel_shape: Sequence[int], spec: ConvSpec) -> str:
    """The formulation a CPU runs fastest, from measurements at batch 128 on two cores."""
    channels, features = kernel_shape[2:]
    if spec.groups > 1:
        is_depthwise = channels == 1 and spec.groups == features == x_shape[-1]
        return "depthwise" if is_depthwise else "native"
    if tuple(kernel_shape[:2]) == (1, 1):
        return "pointwise"
    sizes = [
        (n, k, forms.output_size(n, k, stride, ends))
        for n, k, stride, ends in zip(
            x_shape[1:3], kernel_shape, spec.strides, spec.padding, strict=False
        )
    ]
    if any(min(n, out) < k for n, k, out in sizes):
        return "live_taps"
    if channels <= 8:
        return "blocked" if spec.max_pool and spec.strides == (1, 1) else "banded"
    return "slices" if spec.formulation == "scan" else "native"


def _apply(x: Array, kernel: Array, spec: ConvSpec, formulation: str) -> Array:
    if formulation == "blocked":
        return blocked_pooled(x, kernel, spec.padding)
    if formulation == "native":
        y = forms.native(x, kernel, spec.strides, spec.padding, spec.groups)
    elif formulation == "banded":
        width = _band_width(x.shape, kernel.shape, spec)
        y = forms.banded(x, kernel, spec.strides, spec.padding, width)
    else:
        y = getattr(forms, formulation)(x, kernel, spec.strides, spec.padding)
    return max_pool(y, 2, 2) if spec.max_pool else y


def _band_width(x_shape: Sequence[int], kernel_shape: Sequence[int], spec: ConvSpec) -> int:
    """A divisor of the output width near the kernel's: wider bands hold ever more zeros."""
    columns = forms.output_size(x_shape[2], kernel_shape[1], spec.strides[1], spec.padding[1])
    target = max(1, round((kernel_shape[1] + 2) / spec.strides[1] ** 2))
    divisors = [d for d in range(1, columns + 1) if columns % d == 0]
    return min(divisors, key=lambda d: abs(d - target))


class Conv(nn.Module):
    """A convolution with `nn.Conv`'s parameters: `kernel` HWIO and, if asked, `bias`.

    Attributes:
      features: output channels.
      kernel_size: rows and columns of the kernel.
      strides: rows and columns.
      padding: zeros added to both ends of rows and of columns.
      groups: feature groups; equal to the input channels for a depthwise convolution.
      max_pool: whether 2x2 max pooling follows, which commutes with adding the bias.
      use_bias: whether to add a bias per output channel.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      formulation: one of `FORMULATIONS`.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    max_pool: bool = False
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.kaiming_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        rows, columns = self.padding
        spec = ConvSpec(
            strides=self.strides,
            padding=((rows, rows), (columns, columns)),
            groups=self.groups,
            max_pool=self.max_pool,
            formulation=self.formulation,
        )
        y: Any = conv2d(x, kernel, spec)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return y
