"""An update in as few sections as it can have.

A program reads, hashes and writes section by section: 800 of one leaf each would cost more to go
through than their entries do.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from cdl_jax.core.check import ranges
from cdl_jax.core.layout import SparseUpdate, TreeSpec, ends

_MOST = 2**29  # entries of sections that are joined: their positions and slots stay in int32


class Group(NamedTuple):
    """Sections that become one."""

    sections: tuple[int, ...]
    places: tuple[int, ...]  # their leaves
    offsets: np.ndarray  # int32[sections], where each begins in the one
    scaled: bool


def groups(update: SparseUpdate, spec: TreeSpec) -> tuple[Group, ...]:
    """Which sections of an update become one: those of one dtype, all with scales or none."""
    scaled = tuple(scale is not None for scale in update.section_scales())
    return _groups(spec, update.sections, scaled)


@functools.lru_cache(maxsize=16)
def _groups(
    spec: TreeSpec, sections: tuple[tuple[int, ...], ...], scaled: tuple[bool, ...]
) -> tuple[Group, ...]:
    made: list[list[int]] = []
    open_for: dict[Any, tuple[list[int], int]] = {}
    totals = ranges(spec, sections).totals.tolist()
    for s, total in enumerate(totals):
        kind = scaled[s], frozenset(spec.leaves[i].dtype for i in sections[s])
        mine, upto = open_for.get(kind, ([], _MOST))
        if upto + total > _MOST:
            mine, upto = [], 0
            made.append(mine)
        mine.append(s)
        open_for[kind] = mine, upto + total
    return tuple(
        Group(
            tuple(mine),
            tuple(i for s in mine for i in sections[s]),
            ends([totals[s] for s in mine])[:-1].astype(np.int32),
            scaled[mine[0]],
        )
        for mine in made
    )


def merged(update: SparseUpdate, spec: TreeSpec) -> SparseUpdate:
    """The same entries, of NumPy arrays without padding, in `groups(update, spec)`.

    A scale is one number per entry then, float32[k].
    """
    known = groups(update, spec)
    columns = tuple(zip(*(_joined(update, group) for group in known), strict=True))
    indices, values, scales = columns or ((), (), ())
    return dataclasses.replace(
        update,
        sections=tuple(group.places for group in known),
        indices=indices,
        values=values,
        counts=np.array([at.size for at in indices], np.int32),
        scales=scales,
    )


def _joined(update: SparseUpdate, group: Group) -> tuple[Any, ...]:
    """Positions, values and scales of sections side by side."""
    indices = [update.indices[s] for s in group.sections]
    counts, scales = [at.size for at in indices], update.section_scales()
    return (
        np.concatenate(indices) + np.repeat(group.offsets, counts),
        np.concatenate([update.values[s] for s in group.sections]),
        np.repeat(np.array([scales[s] for s in group.sections], np.float32), counts)
        if group.scaled
        else None,
    )
