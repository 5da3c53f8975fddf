"""Whether an update fits a tree. Needs no JAX."""

import functools
from typing import NamedTuple

import numpy as np

from cdl_jax.core.layout import SparseUpdate, TreeSpec, dtype_of

_LEVELS = np.dtype(np.int8)
_WORDS = np.dtype(np.uint32)


class Ranges(NamedTuple):
    """What a tree makes of the sections of an update to it."""

    totals: np.ndarray  # int64[sections], entries that each covers
    dtypes: tuple[np.dtype, ...]  # of each one's new values: the leaves', uint32 for a mixture
    quantizable: tuple[bool, ...]  # whether all its leaves are float32


@functools.lru_cache(maxsize=16)
def ranges(spec: TreeSpec, sections: tuple[tuple[int, ...], ...]) -> Ranges:
    """The ranges of sections; kept, since a model of 800 leaves takes them at every update.

    Raises:
      ValueError: for a leaf that the tree does not have.
    """
    for places in sections:
        if places[-1] >= len(spec.leaves):
            raise ValueError(f"it changes leaf {places[-1]} of {len(spec.leaves)}")
    kinds = [{spec.leaves[i].dtype for i in places} for places in sections]
    return Ranges(
        np.array([sum(spec.leaves[i].size for i in places) for places in sections], np.int64),
        tuple(dtype_of(next(iter(kind))) if len(kind) == 1 else _WORDS for kind in kinds),
        tuple(kind == {"float32"} for kind in kinds),
    )


def check_update(update: SparseUpdate, spec: TreeSpec) -> None:
    """Whether an update, with NumPy arrays and no padding, fits a tree.

    Raises:
      ValueError: says what does not: fingerprint, leaf, dtype, or a position past the end.
    """
    if update.fingerprint != spec.fingerprint:
        raise ValueError(
            f"it is for a model of fingerprint {update.fingerprint.hex()}, this one has "
            f"{spec.fingerprint.hex()}"
        )
    known = ranges(spec, update.sections)
    scaled = [scale is not None for scale in update.section_scales()]
    _check_dtypes(update, spec, known, scaled)
    last = np.array([at[-1] if at.size else -1 for at in update.indices], np.int64)
    for s in np.flatnonzero(last >= known.totals):
        name = spec.leaves[update.sections[s][-1]].name
        raise ValueError(f"position {last[s]} is past the end of {name}")


def _check_dtypes(update: SparseUpdate, spec: TreeSpec, known: Ranges, scaled: list[bool]) -> None:
    rows = zip(scaled, known.dtypes, strict=True)
    expected = [_LEVELS if levels else dtype for levels, dtype in rows]
    found = [values.dtype for values in update.values]
    unfit = [levels and not fits for levels, fits in zip(scaled, known.quantizable, strict=True)]
    if found == expected and not any(unfit):
        return
    for places, want, got, wrong in zip(update.sections, expected, found, unfit, strict=True):
        name = spec.leaves[places[0]].name
        if wrong:
            raise ValueError(
                f"{name} is {spec.leaves[places[0]].dtype}, and levels are for float32"
            )
        if want != got:
            raise ValueError(f"{name} is {want.name}, its new values {got.name}")
