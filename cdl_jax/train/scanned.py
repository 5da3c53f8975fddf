"""Many triggers under one program, with the data on the device: for accelerators.

The host then sends positions instead of samples, and is waited for once a block. A block of fewer
triggers runs the same program with a smaller count, so where a stream is cut changes no bit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core.step import StepInfo, TrainState, deployed, proactive_step
from cdl_jax.models import Classifier
from cdl_jax.train.config import TrainConfig
from cdl_jax.train.scoring import Metrics, Scores, score_fn
from cdl_jax.train.strategies import plan


class Positions(NamedTuple):
    """Of the samples that one trigger needs; int64 each."""

    arriving: np.ndarray  # to be scored, always as many
    batch: np.ndarray  # to be trained on, always as many


class Outcomes:
    """What a block's steps gave, fetched from the device when it is first asked for."""

    def __init__(self, stacked: Any):
        self._stacked, self._here = stacked, None

    def at(self, place: int) -> tuple[Scores, StepInfo]:
        """Of the block's trigger number `place`; NumPy arrays."""
        if self._here is None:
            self._here = jax.device_get(self._stacked)
        return jax.tree.map(lambda x: x[place], self._here)


class Scan:
    """The step of up to `config.scan` triggers as one compiled loop.

    Args:
      config: of the run.
      data: arrays by name, a row a sample; they stay on the device.
      model: what is trained.
      metrics: the user's own.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: dict[str, np.ndarray],
        model: Classifier,
        metrics: Metrics | None = None,
    ):
        self._length, self._data = config.scan, jax.device_put(data)
        chosen, score = plan(config), score_fn(model, metrics)

        def one(state: TrainState, data: Any, at: Positions) -> tuple[TrainState, Any]:
            scores = score(deployed(state), _rows(data, at.arriving))
            state, info = proactive_step(
                state, None, _rows(data, at.batch), model.loss_fn, chosen.tx, update=chosen.update
            )
            return state, (scores, info)

        def block(state: TrainState, data: Any, at: Positions, count: Any) -> Any:
            like = jax.eval_shape(one, state, data, _at(at, 0))[1]
            outs = jax.tree.map(lambda x: jnp.zeros((self._length, *x.shape), x.dtype), like)

            def body(turn: Any, carry: Any) -> Any:
                state, outs = carry
                state, out = one(state, data, _at(at, turn))
                return state, jax.tree.map(lambda all_, x: all_.at[turn].set(x), outs, out)

            return jax.lax.fori_loop(0, count, body, (state, outs))

        self._block = jax.jit(block, donate_argnums=0)

    def take(self, state: TrainState, rows: Sequence[Positions]) -> tuple[TrainState, Outcomes]:
        """The steps of some triggers, one after another."""
        first = rows[0]
        padded = [*rows, *[first] * (self._length - len(rows))]
        at = Positions(*(np.stack(column).astype(np.int32) for column in zip(*padded, strict=True)))
        count = np.int32(len(rows))
        state, outs = self._block(state, self._data, *jax.device_put((at, count)))
        return state, Outcomes(outs)

    def warm_up(self, state: TrainState, row: Positions) -> None:
        """Compiles the loop; the state stays."""
        copy = jax.tree.map(jnp.copy, state)
        at = jax.tree.map(lambda x: np.stack([x.astype(np.int32)] * self._length), row)
        self._block(copy, self._data, *jax.device_put((at, np.int32(0))))


def _at(rows: Positions, turn: Any) -> Positions:
    return jax.tree.map(lambda x: x[turn], rows)


def _rows(data: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: x[index], data)
