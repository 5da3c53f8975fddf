"""The compiled steps of a run: the usual one, and the one that answers to a drift."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.step import LossFn, StepInfo, TrainState, deployed, proactive_step
from cdl_jax.data.samples import LABEL
from cdl_jax.models import Classifier
from cdl_jax.train.baselines import Frozen, Retraining
from cdl_jax.train.bundle import Bundle, bundle
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.drift import Watch
from cdl_jax.train.initial import Trained
from cdl_jax.train.scoring import AT_ONCE, Metrics, Score, score_fn, scorer
from cdl_jax.train.strategies import Outcome, Plan, Strategy, plan


def strategy(
    config: TrainConfig,
    model: Classifier,
    untrained: Callable[[], Trained],
    sharding: Any = None,
    metrics: Metrics | None = None,
) -> Strategy:
    """What a run does when its trigger is full.

    Args:
      config, model: of the run.
      untrained: where a full retraining starts.
      sharding: of the state, over a mesh.
      metrics: the user's own, of each sample.
    """
    if config.strategy == "full":
        return Retraining(config, model.loss_fn, scorer(model, sharding, metrics), untrained)
    if config.strategy == "frozen":
        return Frozen(scorer(model, sharding, metrics))
    return Steps(config, model, sharding, metrics)


class Steps(Strategy):
    """Takes each step by the program that is its turn.

    Which one it is follows from the settings and the metrics so far, so a run that is resumed
    chooses the same. The scoring of the new samples is part of the program: on a few cores it runs
    beside what of the step does not fill them, and the host hands over one program, not two.

    Args:
      config, model: of the run.
      sharding: of the state, over a mesh.
      metrics: the user's own, of each sample.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Classifier,
        sharding: Any = None,
        metrics: Metrics | None = None,
    ):
        super().__init__(scorer(model, sharding, metrics))
        denser = dataclasses.replace(config, density=config.drift_density)
        self._plans = {False: plan(config), True: plan(denser)}
        score = score_fn(model, metrics)
        self._compiled = {
            answers: _program(model.loss_fn, score, chosen, sharding)
            for answers, chosen in self._plans.items()
        }
        self._sharding, self._denser = sharding, "density" in config.reactions()
        self._usual, self._answers = self._compiled[False], False

    def example(self, state: TrainState, batch: Any) -> SparseUpdate:
        """See `Strategy`."""
        return jax.eval_shape(self._usual, state, batch, None)[1].shapes()[1].update

    def warm_up(self, state: TrainState, batch: Any, new: Any = None) -> None:
        """Compiles the usual step, and the one that an answer is not to wait for."""
        if new is not None and len(new[LABEL]) > AT_ONCE:
            super().warm_up(state, batch, new)
            new = None
        for program in [self._usual, *[self._compiled[True]] * self._denser]:
            program(jax.tree.map(jnp.copy, state), batch, new)

    def prepare(self, state: TrainState, watch: Watch, version: int, position: int) -> TrainState:
        """See `Strategy`."""
        self._answers = watch.answers("density", version, position)
        return self._reset(state) if watch.resets(version) else state

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Callable[[], StepInfo]]:
        """See `Strategy`."""
        state, packed = self._compiled[self._answers](state, batch, None)
        return state, lambda: packed.open()[1]

    def take(self, state: TrainState, batch: Any, new: Any) -> tuple[TrainState, Outcome]:
        """See `Strategy`."""
        if len(new[LABEL]) > AT_ONCE:
            return super().take(state, batch, new)
        state, packed = self._compiled[self._answers](state, batch, new)
        return state, packed.open

    def _reset(self, state: TrainState) -> TrainState:
        usual = self._plans[False]
        fresh = jax.jit(usual.optimizer.init, out_shardings=self._sharding)(state.params)
        return state._replace(opt_state=usual.with_optimizer(state.opt_state, fresh))


def _program(loss_fn: LossFn, score: Score, chosen: Plan, sharding: Any) -> Callable[..., Any]:
    """Scores of new samples, if any, and `core.step.make_step`'s step, which tell in a bundle."""

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def step(state: TrainState, batch: Any, new: Any) -> tuple[TrainState, Bundle]:
        scores = None if new is None else score(deployed(state), new)
        state, info = proactive_step(state, None, batch, loss_fn, chosen.tx, update=chosen.update)
        return state, bundle((scores, info))

    return step
