"""The paper's strategies as optax chains and modes of shipping."""

from typing import NamedTuple

import optax

from cdl_jax.core import compress
from cdl_jax.core.sparsify import error_feedback
from cdl_jax.core.step import Update
from cdl_jax.train.config import TrainConfig


class Plan(NamedTuple):
    """How a strategy takes its steps."""

    optimizer: optax.GradientTransformation  # of the initial training too
    sparsifier: optax.GradientTransformation | None  # behind it, once the stream flows
    update: Update
    uses_history: bool

    @property
    def tx(self) -> optax.GradientTransformation:
        """The chain of the continuous steps."""
        return optax.chain(self.optimizer, self.sparsifier or optax.identity())


def plan(config: TrainConfig) -> Plan:
    """The strategy that a configuration names (Prapas et al. 2021, sections 3 and 4)."""
    sparse = config.strategy == "sparse"
    return Plan(
        optimizer=optax.amsgrad(config.learning_rate),
        sparsifier=error_feedback(_compressor(config), seed=config.seed) if sparse else None,
        update="sparse" if sparse else "dense",
        uses_history=config.strategy != "online",
    )


def _compressor(config: TrainConfig) -> compress.Compressor:
    if config.compressor == "quantize":
        return compress.quantize(config.bits)
    make = {"top_k": compress.top_k, "random_k": compress.random_k}[config.compressor]
    return make(config.density, scope=config.scope, values=config.values)
