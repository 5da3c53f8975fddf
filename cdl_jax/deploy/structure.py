"""The pytree that a log's tensors make."""

import functools
from typing import Any

import numpy as np

from cdl_jax.core.layout import TreeSpec, dtype_of, nested
from cdl_jax.core.tree import Structure, flatten
from cdl_jax.errors import LogError


def structure_of(spec: TreeSpec, template: Any = None) -> Structure:
    """That of nested dicts, or of a template.

    Raises:
      LogError: when the template has not the leaves of `spec`.
    """
    return _of_dicts(spec) if template is None else _of(spec, template)


@functools.lru_cache(maxsize=8)
def _of_dicts(spec: TreeSpec) -> Structure:
    return flatten(nested({leaf.name: 0 for leaf in spec.leaves})).structure


def _of(spec: TreeSpec, template: Any) -> Structure:
    flat, known = flatten(template), {leaf.name: leaf for leaf in spec.leaves}
    for name, like in zip(flat.names, flat.leaves, strict=True):
        if name not in known or known[name].shape != like.shape:
            raise LogError(f"the log's model does not fit the template at {name}")
        dtype = dtype_of(known[name].dtype)
        if dtype != dtype_of(np.dtype(like.dtype).name):
            raise LogError(f"{name} is {dtype} in the log, {like.dtype} here")
    if len(known) != len(flat.names):
        raise LogError(f"the log's model has {len(known)} tensors, the template {len(flat.names)}")
    return flat.structure
