"""The models of the paper in Flax Linen, and the functions a step and a server call."""

from collections.abc import Callable

import flax.linen as nn

from cdl_jax.models.classifier import Classifier, classifier
from cdl_jax.models.conv import Conv, ConvSpec, conv2d
from cdl_jax.models.densenet import DenseNet161
from cdl_jax.models.lenet5 import LeNet5
from cdl_jax.models.mlp import MLP
from cdl_jax.models.mobilenet_v2 import MobileNetV2
from cdl_jax.models.norm import BatchNorm
from cdl_jax.models.resnet import ResNet, resnet18, resnet50

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": MobileNetV2,
    "densenet161": DenseNet161,
    "mlp": MLP,
}


def create_model(name: str, num_classes: int = 10, formulation: str = "auto") -> nn.Module:
    """The Linen module of that name.

    Args:
      name: lenet5, resnet18, resnet50, mobilenet_v2, densenet161 or mlp.
      num_classes: number of logits.
      formulation: how convolutions are computed, see `Conv`. `"auto"` is fastest on a CPU,
        except inside `lax.scan`, where `"scan"` is.

    Raises:
      ValueError: for another name.
    """
    if name not in MODELS:
        raise ValueError(f"model is {name!r}; it must be one of {', '.join(MODELS)}")
    return MODELS[name](num_classes=num_classes, formulation=formulation)


__all__ = [
    "MLP",
    "MODELS",
    "BatchNorm",
    "Classifier",
    "Conv",
    "ConvSpec",
    "DenseNet161",
    "LeNet5",
    "MobileNetV2",
    "ResNet",
    "classifier",
    "conv2d",
    "create_model",
    "resnet18",
    "resnet50",
]
