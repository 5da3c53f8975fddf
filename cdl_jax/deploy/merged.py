"""An update in as few sections as it can have.

A program reads, hashes and writes section by section: 800 of one leaf each would cost more to go
through than their entries do.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from cdl_jax.core.check import ranges
from cdl_jax.core.layout import SparseUpdate, TreeSpec, ends

_MOST = 2**29  # entries of sections that are joined: their positions and slots stay in int32

Groups = tuple[tuple[int, ...], ...]  # sections that become one


def groups(update: SparseUpdate, spec: TreeSpec) -> Groups:
    """Which sections of an update become one: those of one dtype, all with scales or none."""
    scaled = tuple(scale is not None for scale in update.section_scales())
    return _groups(spec, update.sections, scaled)


@functools.lru_cache(maxsize=16)
def _groups(
    spec: TreeSpec, sections: tuple[tuple[int, ...], ...], scaled: tuple[bool, ...]
) -> Groups:
    made: list[list[int]] = []
    open_for: dict[Any, tuple[list[int], int]] = {}
    for s, total in enumerate(ranges(spec, sections).totals):
        kind = scaled[s], frozenset(spec.leaves[i].dtype for i in sections[s])
        mine, upto = open_for.get(kind, ([], _MOST))
        if upto + total > _MOST:
            mine, upto = [], 0
            made.append(mine)
        mine.append(s)
        open_for[kind] = mine, upto + int(total)
    return tuple(map(tuple, made))


def merged(update: SparseUpdate, spec: TreeSpec) -> SparseUpdate:
    """The same entries, of NumPy arrays without padding, in `groups(update, spec)`.

    A scale is one number per entry then, float32[k].
    """
    known, scales = ranges(spec, update.sections), update.section_scales()
    columns = zip(*(_joined(update, known.totals, scales, g) for g in groups(update, spec)),
                  strict=True)  # fmt: skip
    sections, indices, values, joined_scales = tuple(columns) or ((), (), (), ())
    return dataclasses.replace(
        update,
        sections=sections,
        indices=indices,
        values=values,
        counts=np.array([at.size for at in indices], np.int32),
        scales=joined_scales,
    )


def _joined(
    update: SparseUpdate, totals: np.ndarray, scales: tuple[Any, ...], group: tuple[int, ...]
) -> tuple[Any, ...]:
    """Leaves, positions, values and scales of sections side by side."""
    indices = [update.indices[s] for s in group]
    counts = [at.size for at in indices]
    offsets = ends(totals[list(group)].tolist())[:-1].astype(np.int32)
    scaled = scales[group[0]] is not None
    return (
        tuple(i for s in group for i in update.sections[s]),
        np.concatenate(indices) + np.repeat(offsets, counts),
        np.concatenate([update.values[s] for s in group]),
        np.repeat(np.array([scales[s] for s in group], np.float32), counts) if scaled else None,
    )
