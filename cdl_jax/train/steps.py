"""The compiled steps of a run: the usual one, and the one that answers to a drift."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.step import LossFn, StepInfo, TrainState, proactive_step
from cdl_jax.train.baselines import Frozen, Retraining
from cdl_jax.train.bundle import Bundle, bundle
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.drift import Watch
from cdl_jax.train.initial import Trained
from cdl_jax.train.strategies import Plan, plan


def stepper(
    config: TrainConfig, loss_fn: LossFn, untrained: Callable[[], Trained], sharding: Any = None
) -> "Steps | Frozen | Retraining":
    """What a strategy does when its trigger is full; `sharding` is of the state, over a mesh."""
    if config.strategy == "full":
        return Retraining(config, loss_fn, untrained)
    return Frozen() if config.strategy == "frozen" else Steps(config, loss_fn, sharding)


class Steps:
    """Takes each step by the program that is its turn.

    Which one it is follows from the settings and the metrics so far, so a run that is resumed
    chooses the same.
    """

    def __init__(self, config: TrainConfig, loss_fn: LossFn, sharding: Any = None):
        denser = dataclasses.replace(config, density=config.drift_density)
        self._plans = {False: plan(config), True: plan(denser)}
        self._compiled = {
            answers: _program(loss_fn, chosen, sharding) for answers, chosen in self._plans.items()
        }
        self.tell: Callable[[str], None] = lambda note: None
        self._sharding, self._denser = sharding, "density" in config.reactions()
        self._usual, self._answers = self._compiled[False], False

    def example(self, state: TrainState, batch: Any) -> SparseUpdate:
        """The shapes of the updates that the steps will make."""
        return jax.eval_shape(self._usual, state, batch)[1].shapes().update

    def warm_up(self, state: TrainState, batch: Any) -> None:
        """Compiles the usual step, and the one that an answer is not to wait for; the state stays.

        Args:
          state: as the usual step takes it.
          batch: of the shapes that the steps will see.
        """
        self._usual(jax.tree.map(jnp.copy, state), batch)
        if self._denser:
            self._compiled[True](jax.tree.map(jnp.copy, state), batch)

    def prepare(self, state: TrainState, watch: Watch, version: int, position: int) -> TrainState:
        """Chooses the program of the step that makes `version`; the state as it takes it."""
        self._answers = watch.answers("density", version, position)
        return self._reset(state) if watch.resets(version) else state

    def take(self, state: TrainState, batch: Any) -> tuple[TrainState, Callable[[], StepInfo]]:
        """The step; what it tells is waited for when it is asked for."""
        state, packed = self._compiled[self._answers](state, batch)
        return state, packed.open

    def _reset(self, state: TrainState) -> TrainState:
        usual = self._plans[False]
        fresh = jax.jit(usual.optimizer.init, out_shardings=self._sharding)(state.params)
        return state._replace(opt_state=usual.with_optimizer(state.opt_state, fresh))


def _program(loss_fn: LossFn, chosen: Plan, sharding: Any) -> Callable[..., Any]:
    """`core.step.make_step`'s, whose information comes as a bundle."""

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def step(state: TrainState, batch: Any) -> tuple[TrainState, Bundle]:
        state, info = proactive_step(state, None, batch, loss_fn, chosen.tx, update=chosen.update)
        return state, bundle(info)

    return step
