"""Positions of a group's sections: gaps between those present, or between those absent.

A sparse group's stream (see `numbers`) holds p[i] - p[i-1] - 1 for all its sections in turn,
each starting at p[-1] = -1. A dense one has a stream with, per section, how many positions between
0 and its last one are absent; then the gaps of these, counted over the sections' ranges put end
to end. A whole leaf, or a run, has no absent ones and takes next to nothing.
"""

import numpy as np

from cdl_jax.wire import numbers
from cdl_jax.wire.error import WireError
from cdl_jax.wire.numbers import MAX_POSITION

MIN_DENSE = 32


def is_dense(positions: np.ndarray) -> bool:
    """Whether more than two of three positions up to the last one are there: it is shorter."""
    k = positions.size
    return k >= MIN_DENSE and 3 * k > 2 * (int(positions[-1]) + 1)


def are_dense(positions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`is_dense` of each section, bool[sections]."""
    spans = positions[np.cumsum(counts) - 1].astype(np.int64) + 1
    return (counts >= MIN_DENSE) & (3 * counts > 2 * spans)


def encode(positions: np.ndarray, counts: np.ndarray, *, dense: bool) -> bytes:
    """Positions int32, those of each section ascending, as bytes."""
    if not dense:
        return numbers.encode_gaps(positions, counts)
    spans = positions[np.cumsum(counts) - 1].astype(np.int64) + 1
    there = np.zeros(int(spans.sum()), bool)
    there[positions + np.repeat(_before(spans), counts)] = True
    absent = np.flatnonzero(~there)
    head = numbers.encode((spans - counts).astype(np.uint32))
    if not absent.size:
        return head
    return head + numbers.encode((np.diff(absent, prepend=-1) - 1).astype(np.uint32))


def decode(data: bytes, at: int, counts: np.ndarray, *, dense: bool) -> tuple[np.ndarray, int]:
    """Inverse of `encode`, int32, and the place behind; allocates O(sum(counts) + left).

    Raises:
      WireError: for what cannot be positions. Other forms of them may pass.
    """
    if dense:
        return _decode_dense(data, at, counts)
    return numbers.decode_gaps(data, at, counts)


def _decode_dense(data: bytes, at: int, counts: np.ndarray) -> tuple[np.ndarray, int]:
    missing, at = numbers.decode(data, at, counts.size)
    total, present = int(missing.sum(dtype=np.int64)), int(counts.sum())
    if 2 * total >= present:
        raise WireError(f"{total} positions are absent in a dense group of {present}")
    spans = counts + missing
    there = np.ones(int(spans.sum()), bool)
    if total:
        gaps, at = numbers.decode(data, at, total)
        absent = np.cumsum(gaps, dtype=np.int64) + np.arange(total)
        if absent[-1] >= there.size:
            raise WireError("an absent position lies past the last section")
        there[absent] = False
    which = np.flatnonzero(there)
    positions = which - np.repeat(_before(spans), counts)
    if positions.min() < 0 or positions.max() > MAX_POSITION:
        raise WireError(f"a position is outside 0 to {MAX_POSITION}")
    return positions.astype(np.int32), at


def _before(spans: np.ndarray) -> np.ndarray:
    return np.cumsum(spans) - spans
