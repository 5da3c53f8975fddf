"""Weights in: a torchvision `state_dict` in safetensors form, for each of the five models.

Our parameter paths joined by dots are torchvision's names but for the last part (see `_LEAVES`),
so a tensor's name and shape say where it belongs, and nothing is guessed: every tensor of the
file and of the model is accounted for. Needs NumPy and safetensors alone.
"""

import hashlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from cdl_jax.errors import ConfigError

Tree = Any  # nested dicts of arrays, or of their shapes and dtypes
Tensors = dict[str, np.ndarray]

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_HEADS = {
    "lenet5": "fc3",
    "resnet18": "fc",
    "resnet50": "fc",
    "mobilenet_v2": "classifier.1",
    "densenet161": "classifier",
}
# PyTorch flattens channels first, our models last: the images that meet a dense layer, C, H, W.
_FLATTENED = {("lenet5", "fc1.weight"): (16, 5, 5)}
# Weights in our axes and in PyTorch's: HWIO and OIHW, IO and OI.
_TO_FLAX = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def load_torchvision(
    path: str | os.PathLike[str], model: str, params: Tree, model_state: Tree
) -> tuple[Tree, Tree]:
    """The trees with a file's values in place of their own.

    Args:
      path: a safetensors file of a state_dict, weights OIHW and OI, of any floating type.
      model: a name in `cdl_jax.models.MODELS`. LeNet5's layers are conv1, conv2, fc1, fc2, fc3.
      params: freshly initialised; the head's stay where the file's is of other classes.
      model_state: running means and variances, {} for a model without.

    Returns:
      params and model_state of the same structure and shapes, float32 NumPy arrays, but for a
      kept head.

    Raises:
      ConfigError: names a tensor that is missing, unknown, misshapen, not floating or not finite;
        or the model, where torchvision has none of that name.
    """
    if model not in _HEADS:
        raise ConfigError(
            f"model is {model!r}, which takes no --init-weights; give one of {', '.join(_HEADS)}, "
            "or leave the weights to your model's own init_fn"
        )
    wanted = dict(_leaves(params)) | dict(_leaves(model_state))
    tensors = {k: _float32(path, k, v) for k, v in _read(path) if not _is_counter(k, wanted)}
    kept = _other_head(model, tensors, wanted)
    _check(path, model, *({k: d[k] for k in d if k not in kept} for d in (tensors, wanted)))
    layouts = {name: _FLATTENED.get((model, name)) for name in wanted}
    ours = {
        name: leaf if name in kept else _to_flax(tensors[name], layouts[name])
        for name, leaf in wanted.items()
    }
    return _filled(params, ours), _filled(model_state, ours)


def content_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
      ConfigError: when it cannot be read.
    """
    return hashlib.sha256(_bytes(path)).hexdigest()


def torchvision_name(path: tuple[str, ...]) -> str:
    """The state_dict's name of the leaf at a path of our trees."""
    *modules, leaf = path
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def _bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the weights in {path} cannot be read: {error.strerror}") from error


def _read(path: str | os.PathLike[str]) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        return sorted(safetensors.deserialize(_bytes(path)), key=lambda entry: entry[0])
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"{path} is not a safetensors file ({error}); save the state_dict with "
            "safetensors.torch.save_file"
        ) from error


def _is_counter(name: str, wanted: Mapping[str, Any]) -> bool:
    """Whether it says how many batches a BatchNorm of the model has seen: we need not know."""
    module, _, leaf = name.rpartition(".")
    return leaf == "num_batches_tracked" and f"{module}.running_mean" in wanted


def _float32(path: Any, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _FLOATS:
        raise ConfigError(
            f"{name} in {path} is {entry['dtype']}; give floating weights, of F32 for example"
        )
    raw = np.frombuffer(entry["data"], _FLOATS[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # told below
        values = raw.astype(np.float32)
    wrong = raw[~np.isfinite(values)]
    if wrong.size:
        raise ConfigError(
            f"{name} in {path} holds {wrong[0]:g}; give finite weights, up to float32's "
            f"{np.finfo(np.float32).max:.4g}"
        )
    return values


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each leaf under its torchvision name."""
    for key, child in tree.items():
        if isinstance(child, Mapping):
            yield from _leaves(child, (*path, key))
        else:
            yield torchvision_name((*path, key)), child


def _filled(tree: Tree, values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Tree:
    return {
        key: _filled(child, values, (*path, key))
        if isinstance(child, Mapping)
        else values[torchvision_name((*path, key))]
        for key, child in tree.items()
    }


def _torch_shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape[axis] for axis in _TO_TORCH[len(leaf.shape)])


def _to_flax(tensor: np.ndarray, flattened: tuple[int, int, int] | None) -> np.ndarray:
    if flattened is not None:
        tensor = tensor.reshape(-1, *flattened).transpose(0, 2, 3, 1)
        tensor = tensor.reshape(-1, math.prod(flattened))
    return np.ascontiguousarray(tensor.transpose(_TO_FLAX[tensor.ndim]))


def _other_head(model: str, tensors: Tensors, wanted: Mapping[str, Any]) -> set[str]:
    """The head's names where the file's head is sound but of another number of classes."""
    weight, bias = (f"{_HEADS[model]}.{leaf}" for leaf in ("weight", "bias"))
    if weight not in tensors or bias not in tensors:
        return set()
    ours, theirs = _torch_shape(wanted[weight]), tensors[weight].shape
    sound = len(theirs) == 2 and theirs[1] == ours[1] and tensors[bias].shape == theirs[:1]
    return {weight, bias} if sound and theirs != ours else set()


def _check(path: Any, model: str, tensors: Tensors, wanted: Mapping[str, Any]) -> None:
    missing = [name for name in wanted if name not in tensors]
    unknown = [name for name in tensors if name not in wanted]
    pairs = [(name, _torch_shape(wanted[name])) for name in wanted if name in tensors]
    wrong = [(name, shape) for name, shape in pairs if tensors[name].shape != shape]
    mend = f"give {model}'s state_dict with torchvision's names"
    if missing:
        raise ConfigError(f"{path} lacks {_some(missing)}; {mend}")
    if unknown:
        raise ConfigError(f"{path} has {_some(unknown)}, which {model} has not; {mend}")
    if wrong:
        listed = [f"{n} {list(tensors[n].shape)} in place of {list(s)}" for n, s in wrong]
        raise ConfigError(f"{path} has {_some(listed)}; {mend}")


def _some(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    rest = len(names) - 1
    return names[0] + (f" and {rest} more tensor{'s' * (rest > 1)}" if rest else "")
