"""Training: the initial model, the continuous loop, its score, its records."""

from cdl_jax.train.config import TrainConfig
from cdl_jax.train.job import run

__all__ = ["TrainConfig", "run"]
