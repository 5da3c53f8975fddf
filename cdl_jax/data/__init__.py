"""Sources of samples, and the history that a step samples from."""

from cdl_jax.data.history import UniformHistory
from cdl_jax.data.sources import DATASETS, ImageData, from_arrays, load

__all__ = ["DATASETS", "ImageData", "UniformHistory", "from_arrays", "load"]
