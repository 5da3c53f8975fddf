"""Sources of samples, and the history that a step samples from."""

from cdl_jax.data.history import POLICIES, History, history
from cdl_jax.data.policies import (
    BalancedHistory,
    ExponentialHistory,
    InverseUseHistory,
    ReservoirHistory,
    UniformHistory,
    WindowHistory,
)
from cdl_jax.data.scenarios import SCENARIOS, scenario
from cdl_jax.data.sources import DATASETS, ImageData, from_arrays, load

__all__ = [
    "DATASETS",
    "POLICIES",
    "SCENARIOS",
    "BalancedHistory",
    "ExponentialHistory",
    "History",
    "ImageData",
    "InverseUseHistory",
    "ReservoirHistory",
    "UniformHistory",
    "WindowHistory",
    "from_arrays",
    "history",
    "load",
    "scenario",
]
