"""Which samples of the past go into a step's batch.

A draw is a function of (seed, step, what joined and was drawn before), so a policy whose `state`
is kept and restored draws what one never stopped would have drawn. Where the probabilities
differ, a draw is the outcome of picking one sample after another, each with a probability in
proportion to its weight among those not yet picked.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from cdl_jax.data.draws import SHRINK, generator_of
from cdl_jax.data.policies import (
    BalancedHistory,
    ExponentialHistory,
    InverseUseHistory,
    ReservoirHistory,
    State,
    Stateless,
    UniformHistory,
    WindowHistory,
)
from cdl_jax.errors import ConfigError


class History(Protocol):
    """Draws positions of samples that were seen before."""

    def join(self, labels: np.ndarray) -> None:
        """The next samples enter the history; integer labels [n]."""
        ...

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """Up to `size` distinct positions below `available`, int64; fewer where there are fewer."""
        ...

    def state(self) -> State:
        """Arrays from which `restore` goes on."""
        ...

    def restore(self, state: State) -> None:
        """Goes on from a `state` of the same policy."""
        ...


POLICIES: dict[str, Callable[[int, int], History]] = {
    "uniform": lambda seed, size: UniformHistory(seed),
    "window": WindowHistory,
    "exponential": ExponentialHistory,
    "inverse_use": lambda seed, size: InverseUseHistory(seed),
    "balanced": lambda seed, size: BalancedHistory(seed),
    "reservoir": ReservoirHistory,
}


def history(policy: str, *, seed: int, size: int) -> History:
    """A policy by its name.

    Args:
      policy: one of `POLICIES`.
      seed: of all draws.
      size: the window of "window", the half-life of "exponential", the capacity of
        "reservoir", in samples; the others have none.

    Raises:
      ConfigError: for an unknown name, or a size below 1.
    """
    if policy not in POLICIES:
        raise ConfigError(f"history is {policy!r}; give one of {', '.join(POLICIES)}")
    if size < 1:
        raise ConfigError(f"history_size is {size}; give 1 or more")
    return POLICIES[policy](seed, size)


def carried(
    state: State, was: tuple[str, int], now: History, joined: Callable[[], np.ndarray]
) -> State:
    """A policy's state as another policy, or one of another size, goes on from it.

    A policy that cannot go on from it begins anew with all that has joined. A smaller reservoir
    keeps a uniform sample of the larger one; what belongs to the rows of one in `state` follows.

    Args:
      state: of the policy that was.
      was: its name and size.
      now: the policy that goes on, of the same run.
      joined: gives the labels of all samples so far; called where they are needed.
    """
    if isinstance(now, Stateless):
        return {}
    if was[0] == "reservoir" and isinstance(now, ReservoirHistory):
        if len(state["kept"]) > now.capacity:
            return _shrunk(state, now)
        if int(state["seen"][0]) == len(state["kept"]) or was[1] == now.capacity:
            return state
    elif POLICIES[was[0]](0, 1).__class__ is now.__class__:
        return state
    now.join(joined())
    return now.state()


def _shrunk(state: State, now: ReservoirHistory) -> State:
    seen = int(state["seen"][0])
    generator = generator_of(now.seed, seen, SHRINK)
    stay = np.sort(generator.choice(len(state["kept"]), now.capacity, replace=False))
    return {name: x if name == "seen" else x[stay] for name, x in state.items()}
