"""Which samples of the past go into a step's batch.

A draw is a function of (seed, step, what joined and was drawn before), so a policy whose `state`
is kept and restored draws what one never stopped would have drawn. Where the probabilities
differ, a draw is the outcome of picking one sample after another, each with a probability in
proportion to its weight among those not yet picked.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cdl_jax.errors import ConfigError

State = dict[str, np.ndarray]
# Streams of random numbers: draws by step, joins by position, and what a smaller reservoir keeps.
_POLICY, _JOIN, _SHRINK = 0, 1, 2
_COUNTERS = tuple(np.array([0, 0, 0, use], np.uint64) for use in (_POLICY, _JOIN, _SHRINK))


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


class _Stateless:
    """A policy that needs to remember nothing."""

    def join(self, labels: np.ndarray) -> None:
        """Nothing to remember."""

    def state(self) -> State:
        """Nothing."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing to restore."""


@dataclasses.dataclass(frozen=True)
class UniformHistory(_Stateless):
    """Draws uniformly without replacement from a growing range of samples.

    Attributes:
      seed: of all draws.

    Examples:
      >>> sampler = UniformHistory(seed=1)
      >>> bool((sampler.draw(7, 100, 5) == sampler.draw(7, 100, 5)).all())
      True

    References:
      Prapas et al. 2021, section 3.
    """

    seed: int

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        size = min(size, available)
        return _generator(self.seed, step).choice(available, size, replace=False)


@dataclasses.dataclass(frozen=True)
class WindowHistory(_Stateless):
    """Draws uniformly from the most recent samples.

    Attributes:
      seed: of all draws.
      window: how many samples back it reaches.
    """

    seed: int
    window: int

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        reach = min(self.window, available)
        chosen = _generator(self.seed, step).choice(reach, min(size, reach), replace=False)
        return available - reach + chosen


@dataclasses.dataclass(frozen=True)
class ExponentialHistory(_Stateless):
    """Draws recent samples more often: the weight halves every `half_life` samples.

    Attributes:
      seed: of all draws.
      half_life: in samples; what is 40 half-lives old is not drawn.
    """

    seed: int
    half_life: float

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        reach = min(available, max(size, int(40 * self.half_life)))
        generator = _generator(self.seed, step)
        if 8 * size > min(self.half_life, reach):
            ages = _by_weight(generator, -np.arange(reach) * np.log(2) / self.half_life, size)
        else:
            # Inverse of the truncated geometric distribution of ages.
            rate, top = np.log(2) / self.half_life, -np.expm1(-np.log(2) / self.half_life * reach)
            ages = _distinct(
                lambda n: (-np.log1p(-top * generator.random(n)) / rate).astype(np.int64), size
            )
        return available - 1 - np.minimum(ages, reach - 1)


class InverseUseHistory:
    """Draws a sample with a weight of 1 / (1 + times it was drawn before).

    Args:
      seed: of all draws.

    References:
      Prapas et al. 2021, section 3: samples that were used less are drawn more.
    """

    def __init__(self, seed: int):
        self.seed, self._uses = seed, _Growing(np.uint16)

    def join(self, labels: np.ndarray) -> None:
        """See `History`; newcomers count as never drawn."""
        self._uses.extend(np.zeros(len(labels), np.uint16))

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        uses, generator = self._uses.values[:available], _generator(self.seed, step)
        if 4 * size > available:
            chosen = _by_weight(generator, -np.log1p(uses.astype(np.float64)), size)
        else:
            chosen = self._accepted(generator, uses, size)
        uses[chosen] = np.minimum(uses[chosen], np.uint16(65534)) + np.uint16(1)
        return chosen

    def state(self) -> State:
        """See `History`."""
        return {"uses": self._uses.values.copy()}

    def restore(self, state: State) -> None:
        """See `History`."""
        self._uses = _Growing(np.uint16, state["uses"])

    def _accepted(self, generator: Any, uses: np.ndarray, size: int) -> np.ndarray:
        least = 1.0 + float(uses.min())

        def propose(count: int) -> np.ndarray:
            some = generator.integers(0, len(uses), 4 * count)
            return some[generator.random(4 * count) * (1.0 + uses[some]) < least]

        return _distinct(propose, size)


class BalancedHistory:
    """Draws from every class that was seen as evenly as can be, uniformly within a class.

    Args:
      seed: of all draws.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._labels = _Growing(np.int32)
        self._places: dict[int, _Growing] = {}

    def join(self, labels: np.ndarray) -> None:
        """See `History`."""
        first = len(self._labels.values)
        self._labels.extend(np.asarray(labels, np.int32))
        for label in np.unique(labels).tolist():
            mine = first + np.flatnonzero(labels == label)
            self._places.setdefault(label, _Growing(np.int64)).extend(mine)

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        generator = _generator(self.seed, step)
        places = [p.values for _, p in sorted(self._places.items())]
        counts = np.array([np.searchsorted(p, available) for p in places], np.int64)
        quotas = _even(counts, min(size, int(counts.sum())), generator)
        chosen = [
            p[generator.choice(n, q, replace=False)]
            for p, n, q in zip(places, counts, quotas, strict=True)
            if q
        ]
        return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)

    def state(self) -> State:
        """See `History`."""
        return {"labels": self._labels.values.copy()}

    def restore(self, state: State) -> None:
        """See `History`."""
        self._labels, self._places = _Growing(np.int32), {}
        self.join(state["labels"])


class ReservoirHistory:
    """Keeps a uniform sample of fixed size of all that was seen, and draws uniformly from it.

    Args:
      seed: of what stays, and of all draws.
      capacity: samples kept.

    References:
      Vitter, Random sampling with a reservoir, 1985, algorithm R.
    """

    def __init__(self, seed: int, capacity: int):
        self.seed, self.capacity = seed, capacity
        self.kept, self._seen = np.zeros(0, np.int64), 0

    def join(self, labels: np.ndarray) -> None:
        """See `History`."""
        fresh = self._seen + np.arange(len(labels), dtype=np.int64)
        free = min(self.capacity - len(self.kept), len(fresh))
        self.kept = np.concatenate([self.kept, fresh[:free]])
        generator = _generator(self.seed, self._seen, _JOIN)
        for position in fresh[free:].tolist():
            slot = int(generator.integers(position + 1))
            if slot < self.capacity:
                self.kept[slot] = position
        self._seen += len(labels)

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        kept = self.kept if available >= self._seen else self.kept[self.kept < available]
        generator = _generator(self.seed, step)
        return kept[generator.choice(len(kept), min(size, len(kept)), replace=False)]

    def state(self) -> State:
        """See `History`."""
        return {"kept": self.kept.copy(), "seen": np.array([self._seen], np.int64)}

    def restore(self, state: State) -> None:
        """See `History`."""
        self.kept, self._seen = state["kept"].copy(), int(state["seen"][0])


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
    if isinstance(now, _Stateless):
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
    generator = _generator(now.seed, seen, _SHRINK)
    stay = np.sort(generator.choice(len(state["kept"]), now.capacity, replace=False))
    return {name: x if name == "seen" else x[stay] for name, x in state.items()}


class _Growing:
    """An array that grows at its end, at a constant cost for each entry."""

    def __init__(self, dtype: Any, values: Any = ()):
        self._store, self._used = np.array(values, dtype), len(values)

    @property
    def values(self) -> np.ndarray:
        """The entries, as a view."""
        return self._store[: self._used]

    def extend(self, values: np.ndarray) -> None:
        """Appends entries."""
        need = self._used + len(values)
        if need > len(self._store):
            room = np.zeros(max(need, 2 * len(self._store)), self._store.dtype)
            room[: self._used] = self.values
            self._store = room
        self._store[self._used : need] = values
        self._used = need


class _Key(np.random.bit_generator.ISeedSequence):
    """Hands Philox its key as it is; given as `key`, each generator would ask for entropy first."""

    def __init__(self, seed: int, step: int):
        self._words = np.array([seed, step], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        """The key's two words."""
        return self._words


def _generator(seed: int, step: int, use: int = _POLICY) -> np.random.Generator:
    key: Any = _Key(seed, step)  # NumPy's stubs know no interface here, its documentation does
    return np.random.Generator(np.random.Philox(key, counter=_COUNTERS[use]))


def _by_weight(generator: Any, log_weights: np.ndarray, size: int) -> np.ndarray:
    """Gumbel's trick: the `size` largest of log weight + noise."""
    noisy = log_weights + generator.gumbel(size=len(log_weights))
    size = min(size, len(noisy))
    return np.argsort(-noisy, kind="stable")[:size].astype(np.int64)


def _distinct(propose: Callable[[int], np.ndarray], size: int) -> np.ndarray:
    """The first `size` distinct values of a sequence of proposals."""
    found = np.zeros(0, np.int64)
    while len(found) < size:
        found = np.concatenate([found, propose(2 * size)])
        _, first = np.unique(found, return_index=True)
        found = found[np.sort(first)]
    return found[:size]


def _even(counts: np.ndarray, size: int, generator: Any) -> np.ndarray:
    """Quotas that sum to `size`, as even as the counts allow; what is left over is drawn."""
    quotas = np.zeros_like(counts)
    while (left := size - int(quotas.sum())) > 0:
        open_ = np.flatnonzero(quotas < counts)
        share = left // len(open_)
        if not share:
            quotas[generator.choice(open_, left, replace=False)] += 1
        else:
            quotas[open_] += np.minimum(share, counts[open_] - quotas[open_])
    return quotas
