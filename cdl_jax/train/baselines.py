"""The baselines that take no proactive steps: full retraining, and the model that stays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.core import ship
from cdl_jax.core.held import Held
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.step import LossFn, StepInfo, TrainState, deployed, held_by
from cdl_jax.core.tree import tree_spec
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.initial import Trained, fit, fit_step
from cdl_jax.train.strategies import Scorer, Strategy, plan


class Frozen(Strategy):
    """Versions that change nothing."""

    def example(self, state: TrainState, batch: Any) -> SparseUpdate:
        """The shapes of the updates."""
        del batch
        return jax.eval_shape(_stay, state)[1].update

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Callable[[], StepInfo]]:
        """The next version."""
        del batch
        state, info = _stay(state)
        return state, lambda: jax.device_get(info)


class Retraining(Strategy):
    """Training from scratch on everything so far, which then replaces the whole model.

    Args:
      config: of the run.
      loss_fn: the model's.
      scorer: see `Strategy`.
      untrained: where each training starts.

    References:
      Prapas et al. 2021, section 5.
    """

    def __init__(
        self,
        config: TrainConfig,
        loss_fn: LossFn,
        scorer: Scorer,
        untrained: Callable[[], Trained],
    ):
        super().__init__(scorer)
        self._config, self._plan, self._untrained = config, plan(config), untrained
        self._step = fit_step(loss_fn, self._plan.optimizer)

    def example(self, state: TrainState, batch: Any) -> SparseUpdate:
        """The shapes of the updates."""
        del batch
        return jax.eval_shape(_replaced, state, deployed(state))[1].update

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Callable[[], StepInfo]]:
        """One retraining; `batch` holds all samples so far."""
        config, count = self._config, len(jax.tree.leaves(batch)[0])
        steps, done = config.epochs * -(-count // config.batch_size), 0

        def on_step() -> None:
            nonlocal done
            done += 1
            if done % 20 == 0:
                self.tell(f"retraining on {count:,} samples: step {done:,} of {steps:,}")

        with jax.transfer_guard("allow"):
            batch = jax.device_put(batch)  # once for all steps
            trained = fit(
                self._untrained(), lambda index: _rows(batch, jax.device_put(index)), count,
                self._step, epochs=config.epochs, batch_size=config.batch_size, seed=config.seed,
                on_step=on_step,
            )  # fmt: skip
            state, info = _replaced(
                state, {"model_state": trained.model_state, "params": trained.params}
            )
        opt_state = self._plan.with_optimizer(state.opt_state, trained.opt_state)
        return state._replace(opt_state=opt_state), lambda: jax.device_get(info)


@functools.partial(jax.jit, donate_argnums=0)
def _stay(state: TrainState) -> tuple[TrainState, StepInfo]:
    update = SparseUpdate(
        (), (), jnp.zeros(0, jnp.int32), state.version, state.version + 1, state.digest,
        (), tree_spec(deployed(state)).fingerprint,
    )  # fmt: skip
    return _stepped(state, held_by(state), update)


@functools.partial(jax.jit, donate_argnums=0)
def _replaced(state: TrainState, new_tree: Any) -> tuple[TrainState, StepInfo]:
    held, update = ship.replace(held_by(state), state.digest, state.version, new_tree)
    return _stepped(state._replace(model_state=new_tree["model_state"]), held, update)


def _stepped(state: TrainState, held: Held, update: SparseUpdate) -> tuple[TrainState, StepInfo]:
    moved = state._replace(
        params=held.params,
        served_state=held.model_state,
        step=state.step + 1,
        version=update.version,
        digest=update.digest,
    )
    return moved, StepInfo(jnp.zeros(()), {}, jnp.asarray(False), update)


@jax.jit
def _rows(batch: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[index], batch)
