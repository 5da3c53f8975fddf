"""Random numbers that are a function of (seed, step), and ways to draw distinct positions."""

from collections.abc import Callable
from typing import Any

import numpy as np

# Streams of random numbers: draws by step, joins by position, and what a smaller reservoir keeps.
POLICY, JOIN, SHRINK = 0, 1, 2
_COUNTERS = tuple(np.array([0, 0, 0, use], np.uint64) for use in (POLICY, JOIN, SHRINK))


class Growing:
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


def generator_of(seed: int, step: int, use: int = POLICY) -> np.random.Generator:
    """Philox keyed by (seed, step); each use has a stream of its own."""
    key: Any = _Key(seed, step)  # NumPy's stubs know no interface here, its documentation does
    return np.random.Generator(np.random.Philox(key, counter=_COUNTERS[use]))


def by_weight(generator: Any, log_weights: np.ndarray, size: int) -> np.ndarray:
    """Gumbel's trick: the `size` largest of log weight + noise."""
    noisy = log_weights + generator.gumbel(size=len(log_weights))
    size = min(size, len(noisy))
    return np.argsort(-noisy, kind="stable")[:size].astype(np.int64)


def distinct(propose: Callable[[int], np.ndarray], size: int) -> np.ndarray:
    """The first `size` distinct values of a sequence of proposals."""
    found = np.zeros(0, np.int64)
    while len(found) < size:
        found = np.concatenate([found, propose(2 * size)])
        _, first = np.unique(found, return_index=True)
        found = found[np.sort(first)]
    return found[:size]


def even(counts: np.ndarray, size: int, generator: Any) -> np.ndarray:
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
