"""Continuous training and deployment of deep models: sparse updates, exact replicas.

The names below are loaded on first use, so that `cdl_jax.wire` and a NumPy-only replica work
where JAX is not installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdl_jax.core.compress import quantize, random_k, top_k
    from cdl_jax.core.layout import SparseUpdate
    from cdl_jax.core.sparsify import error_feedback, sparsify_top_k
    from cdl_jax.core.step import (
        StepInfo,
        TrainState,
        deployed,
        init_state,
        make_step,
        proactive_step,
    )
    from cdl_jax.core.update import apply_update, apply_update_in_place, tree_digest
    from cdl_jax.wire.format import decode_update, encode_update

_HOMES = {
    "SparseUpdate": "core.layout",
    "StepInfo": "core.step",
    "TrainState": "core.step",
    "apply_update": "core.update",
    "apply_update_in_place": "core.update",
    "decode_update": "wire.format",
    "deployed": "core.step",
    "encode_update": "wire.format",
    "error_feedback": "core.sparsify",
    "init_state": "core.step",
    "make_step": "core.step",
    "proactive_step": "core.step",
    "quantize": "core.compress",
    "random_k": "core.compress",
    "sparsify_top_k": "core.sparsify",
    "top_k": "core.compress",
    "tree_digest": "core.update",
}

__all__ = [
    "SparseUpdate",
    "StepInfo",
    "TrainState",
    "apply_update",
    "apply_update_in_place",
    "decode_update",
    "deployed",
    "encode_update",
    "error_feedback",
    "init_state",
    "make_step",
    "proactive_step",
    "quantize",
    "random_k",
    "sparsify_top_k",
    "top_k",
    "tree_digest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cdl_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cdl_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
