"""The policies by which a `History` draws: uniform, recent, little used, balanced, a reservoir."""

import dataclasses
from typing import Any

import numpy as np

from cdl_jax.data.draws import JOIN, Growing, by_weight, distinct, even, generator_of

State = dict[str, np.ndarray]


class Stateless:
    """A policy that needs to remember nothing."""

    def join(self, labels: np.ndarray) -> None:
        """Nothing to remember."""

    def state(self) -> State:
        """Nothing."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing to restore."""


@dataclasses.dataclass(frozen=True)
class UniformHistory(Stateless):
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
        return generator_of(self.seed, step).choice(available, size, replace=False)


@dataclasses.dataclass(frozen=True)
class WindowHistory(Stateless):
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
        chosen = generator_of(self.seed, step).choice(reach, min(size, reach), replace=False)
        return available - reach + chosen


@dataclasses.dataclass(frozen=True)
class ExponentialHistory(Stateless):
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
        generator = generator_of(self.seed, step)
        if 8 * size > min(self.half_life, reach):
            ages = by_weight(generator, -np.arange(reach) * np.log(2) / self.half_life, size)
        else:
            # Inverse of the truncated geometric distribution of ages.
            rate, top = np.log(2) / self.half_life, -np.expm1(-np.log(2) / self.half_life * reach)
            ages = distinct(
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
        self.seed, self._uses = seed, Growing(np.uint16)

    def join(self, labels: np.ndarray) -> None:
        """See `History`; newcomers count as never drawn."""
        self._uses.extend(np.zeros(len(labels), np.uint16))

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        uses, generator = self._uses.values[:available], generator_of(self.seed, step)
        if 4 * size > available:
            chosen = by_weight(generator, -np.log1p(uses.astype(np.float64)), size)
        else:
            chosen = self._accepted(generator, uses, size)
        uses[chosen] = np.minimum(uses[chosen], np.uint16(65534)) + np.uint16(1)
        return chosen

    def state(self) -> State:
        """See `History`."""
        return {"uses": self._uses.values.copy()}

    def restore(self, state: State) -> None:
        """See `History`."""
        self._uses = Growing(np.uint16, state["uses"])

    def _accepted(self, generator: Any, uses: np.ndarray, size: int) -> np.ndarray:
        least = 1.0 + float(uses.min())

        def propose(count: int) -> np.ndarray:
            some = generator.integers(0, len(uses), 4 * count)
            return some[generator.random(4 * count) * (1.0 + uses[some]) < least]

        return distinct(propose, size)


class BalancedHistory:
    """Draws from every class that was seen as evenly as can be, uniformly within a class.

    Args:
      seed: of all draws.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._labels = Growing(np.int32)
        self._places: dict[int, Growing] = {}

    def join(self, labels: np.ndarray) -> None:
        """See `History`."""
        first = len(self._labels.values)
        self._labels.extend(np.asarray(labels, np.int32))
        for label in np.unique(labels).tolist():
            mine = first + np.flatnonzero(labels == label)
            self._places.setdefault(label, Growing(np.int64)).extend(mine)

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        generator = generator_of(self.seed, step)
        places = [p.values for _, p in sorted(self._places.items())]
        counts = np.array([np.searchsorted(p, available) for p in places], np.int64)
        quotas = even(counts, min(size, int(counts.sum())), generator)
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
        self._labels, self._places = Growing(np.int32), {}
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
        generator = generator_of(self.seed, self._seen, JOIN)
        for position in fresh[free:].tolist():
            slot = int(generator.integers(position + 1))
            if slot < self.capacity:
                self.kept[slot] = position
        self._seen += len(labels)

    def draw(self, step: int, available: int, size: int) -> np.ndarray:
        """See `History`."""
        kept = self.kept if available >= self._seen else self.kept[self.kept < available]
        generator = generator_of(self.seed, step)
        return kept[generator.choice(len(kept), min(size, len(kept)), replace=False)]

    def state(self) -> State:
        """See `History`."""
        return {"kept": self.kept.copy(), "seen": np.array([self._seen], np.int64)}

    def restore(self, state: State) -> None:
        """See `History`."""
        self.kept, self._seen = state["kept"].copy(), int(state["seen"][0])
