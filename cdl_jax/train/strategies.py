"""The paper's strategies as optax chains and modes of shipping."""

from typing import Any, NamedTuple

import optax

from cdl_jax.core import compress
from cdl_jax.core.sparsify import error_feedback
from cdl_jax.core.step import Update
from cdl_jax.train.config import TrainConfig


class Plan(NamedTuple):
    """How a strategy takes its steps."""

    optimizer: optax.GradientTransformation  # of the initial training too
    links: tuple[optax.GradientTransformation, ...]  # of the continuous steps' chain
    place: int  # of the optimizer among them
    update: Update

    @property
    def tx(self) -> optax.GradientTransformation:
        """The chain of the continuous steps."""
        return optax.chain(*self.links)

    def with_optimizer(self, opt_state: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
        """The chain's state with the optimizer's own state replaced."""
        return (*opt_state[: self.place], own, *opt_state[self.place + 1 :])


def plan(config: TrainConfig) -> Plan:
    """The strategy that a configuration names (Prapas et al. 2021, sections 3 and 4)."""
    optimizer = optax.amsgrad(config.learning_rate)
    if config.strategy != "sparse":
        return Plan(optimizer, (optimizer, optax.identity()), 0, "dense")
    compressor = error_feedback(_compressor(config), seed=config.seed)
    if config.order == "before":
        return Plan(optimizer, (compressor, optimizer), 1, "changed")
    return Plan(optimizer, (optimizer, compressor), 0, "sparse")


def _compressor(config: TrainConfig) -> compress.Compressor:
    if config.compressor == "quantize":
        return compress.quantize(config.bits)
    make = {"top_k": compress.top_k, "random_k": compress.random_k}[config.compressor]
    return make(config.density, scope=config.scope, values=config.values)
