"""Changes of single entries of one flat array: the digest they lead to, and the write itself."""

from typing import NamedTuple

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.wire import numbers


class Changes(NamedTuple):
    """New entries of one width, in runs of one leaf each.

    Attributes:
      width: bytes an entry.
      starts: int64[runs], where each leaf begins in the array.
      counts: int32[runs].
      seeds: uint32[runs, 4], of each leaf's lanes.
      positions: int32[k], within the leaf.
      bits: unsigned of the width [k].
    """

    width: int
    starts: np.ndarray
    counts: np.ndarray
    seeds: np.ndarray
    positions: np.ndarray
    bits: np.ndarray


def change(arena: np.ndarray, changes: Changes) -> np.ndarray:
    """What writing them adds to the digest, uint32[4]; writes nothing."""
    codec, (width, starts, counts, seeds, positions, bits) = numbers._codec, changes
    if codec is None:
        return numpy_change(arena, changes)
    lanes = codec.change(arena, width, starts, counts, positions, bits, seeds)
    return np.frombuffer(lanes, np.uint32)


def write(arena: np.ndarray, changes: Changes) -> None:
    """Writes them; of positions that `check.check_update` let pass."""
    codec, (width, starts, counts, _, positions, bits) = numbers._codec, changes
    if codec is None:
        arena[_places(changes)] = bits
    else:
        codec.write(arena, width, starts, counts, positions, bits)


def numpy_change(arena: np.ndarray, changes: Changes) -> np.ndarray:
    """`change` in NumPy alone."""
    before, after = _words(arena[_places(changes)]), _words(changes.bits)
    places, seeds = (
        changes.positions.astype(np.uint32),
        np.repeat(changes.seeds.T, changes.counts, axis=1),
    )
    if changes.width == 8:
        places = np.repeat(2 * places, 2)
        places[1::2] += np.uint32(1)
        seeds = np.repeat(seeds, 2, axis=1)
    return digests.numpy_change(before, after, places, seeds)


def _places(changes: Changes) -> np.ndarray:
    return np.repeat(changes.starts, changes.counts) + changes.positions


def _words(bits: np.ndarray) -> np.ndarray:
    return bits.view("<u4") if bits.itemsize == 8 else bits.astype(np.uint32, copy=False)
