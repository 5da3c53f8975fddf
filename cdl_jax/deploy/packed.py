"""An update as a few arrays: a call with an array for each of 800 sections costs 800 hand-overs."""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from cdl_jax.core.digest import LANES
from cdl_jax.core.layout import SparseUpdate, ends

_PAST_THE_END = 2**31  # of any section (`make_section` sees to it)


class Form(NamedTuple):
    """What a compiled program depends on."""

    sections: tuple[tuple[int, ...], ...]
    slots: tuple[int, ...]  # powers of two, so that few programs are compiled
    dtypes: tuple[str, ...]  # of each section's values
    scaled: tuple[bool, ...]  # whether they are levels
    fingerprint: bytes


class Packed(NamedTuple):
    """The sections' arrays, one after the other."""

    indices: Any  # int32
    values: dict[str, Any]  # by dtype
    scales: Any  # float32, a slot's own, of the sections that have them


def pack(update: SparseUpdate, least: tuple[int, ...] | None = None) -> tuple[Form, Packed]:
    """Packs an update of NumPy arrays without padding.

    Args:
      update: the update.
      least: for how many entries a section has room, at least; by default those it has.
    """
    least = tuple(at.size for at in update.indices) if least is None else least
    form = Form(
        update.sections,
        tuple(1 << max(0, int(n) - 1).bit_length() for n in least),
        tuple(values.dtype.name for values in update.values),
        tuple(scale is not None for scale in update.section_scales()),
        update.fingerprint,
    )
    indices, values, used, start = _padding(form.slots).copy(), _zeros(form, update), {}, 0
    rows = zip(update.indices, update.values, form.slots, form.dtypes, strict=True)
    for at, new, slots, dtype in rows:
        first = used.get(dtype, 0)
        indices[start : start + at.size] = at
        values[dtype][first : first + at.size] = new
        start, used[dtype] = start + slots, first + slots
    return form, Packed(indices, values, _scales(form, update))


def unpack(form: Form, packed: Packed) -> SparseUpdate:
    """The update again, padded; traceable. Of its version and digest it says nothing."""
    starts = ends(form.slots)
    indices = [packed.indices[a:b] for a, b in itertools.pairwise(starts)]
    used, values, scales, first = dict.fromkeys(form.dtypes, 0), [], [], 0
    for slots, dtype, scaled in zip(form.slots, form.dtypes, form.scaled, strict=True):
        values.append(packed.values[dtype][used[dtype] : used[dtype] + slots])
        used[dtype] += slots
        scales.append(packed.scales[first : first + slots] if scaled else None)
        first += slots if scaled else 0
    return SparseUpdate(
        indices=tuple(indices),
        values=tuple(values),
        counts=np.zeros(len(form.slots), np.int32),
        base=np.uint32(0),
        version=np.uint32(1),
        digest=np.zeros(LANES, np.uint32),
        sections=form.sections,
        fingerprint=form.fingerprint,
        scales=tuple(scales),
    )


def _zeros(form: Form, update: SparseUpdate) -> dict[str, np.ndarray]:
    sizes: dict[str, int] = {}
    for slots, dtype in zip(form.slots, form.dtypes, strict=True):
        sizes[dtype] = sizes.get(dtype, 0) + slots
    kinds = {values.dtype.name: values.dtype for values in update.values}
    return {dtype: np.zeros(n, kinds[dtype]) for dtype, n in sizes.items()}


def _scales(form: Form, update: SparseUpdate) -> np.ndarray:
    """A scale for each slot: sections that were merged have one for each entry."""
    out = np.ones(sum(n for n, scaled in zip(form.slots, form.scaled, strict=True) if scaled),
                  np.float32)  # fmt: skip
    start = 0
    rows = zip(update.section_scales(), update.indices, form.slots, strict=True)
    for scale, at, slots in rows:
        if scale is not None:
            out[start : start + at.size] = scale
            start += slots
    return out


@functools.lru_cache(maxsize=8)
def _padding(room: tuple[int, ...]) -> np.ndarray:
    """Positions past the end for all slots, ascending and distinct within a section."""
    total, rest = ends(room), np.array(room, np.int64)
    upto_end = np.repeat(total[1:], rest) - np.arange(int(total[-1]))
    return (_PAST_THE_END - upto_end).astype(np.int32)
