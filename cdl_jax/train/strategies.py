"""The paper's strategies as optax chains and modes of shipping."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from cdl_jax.core import compress
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.sparsify import error_feedback
from cdl_jax.core.step import StepInfo, TrainState, Update, deployed
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.drift import Watch
from cdl_jax.train.scoring import Scores

Outcome = Callable[[], tuple[Scores, StepInfo]]  # NumPy arrays; waits for the programs
Scorer = Callable[[Any, Any], Callable[[], Scores]]  # see `scoring.scorer`


class Strategy(abc.ABC):
    """What is done when a trigger is full.

    Attributes:
      scorer: scores samples by a deployed tree.
      tell: is told of what takes long.
    """

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.tell: Callable[[str], None] = lambda note: None

    @abc.abstractmethod
    def example(self, state: TrainState, batch: Any) -> SparseUpdate:
        """The shapes of the updates that the steps will make."""

    @abc.abstractmethod
    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Callable[[], StepInfo]]:
        """The next version; what the step tells is waited for when it is asked for."""

    def warm_up(self, state: TrainState, batch: Any, new: Any) -> None:
        """Compiles what `take` needs for arrays of these shapes; the state stays."""
        del batch
        self.scorer(deployed(state), new)

    def prepare(self, state: TrainState, watch: Watch, version: int, position: int) -> TrainState:
        """Chooses the program of the step that makes `version`; the state as it takes it."""
        del watch, version, position
        return state

    def take(self, state: TrainState, batch: Any, new: Any) -> tuple[TrainState, Outcome]:
        """`step` on `batch`, and the scores of the deployed model before it on `new` samples."""
        scores = self.scorer(deployed(state), new)
        state, info = self.step(state, batch)
        return state, lambda: (scores(), info())


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
