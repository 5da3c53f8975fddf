"""A deployed tree in NumPy: one arena for each width of entry, with a view per leaf."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate, TreeSpec, dtype_of, ends, nested
from cdl_jax.core.levels import numpy_resolve
from cdl_jax.wire import Snapshot


class Writes(NamedTuple):
    """An update's entries of one width, as places in that width's arena."""

    width: int
    at: np.ndarray  # int64 [k]
    bits: np.ndarray  # unsigned [k]
    leaf: np.ndarray  # int64 [k], places in the tree's sorted order
    within: np.ndarray  # int64 [k], positions within the leaf


class NumpyModel:
    """Holds a tree, changes k entries of it in O(k), hashes it. Needs no JAX."""

    def __init__(self, snapshot: Snapshot):
        self.spec: TreeSpec = snapshot.spec
        self._widths = [dtype_of(leaf.dtype).itemsize for leaf in self.spec.leaves]
        self._seeds = np.stack(
            [digests.seeds(leaf.name, leaf.dtype) for leaf in self.spec.leaves], axis=1
        )
        self._offsets = np.zeros(len(self._widths), np.int64)
        self._arenas = {width: self._arena(width) for width in set(self._widths)}
        self._views = {leaf.name: self._view(i) for i, leaf in enumerate(self.spec.leaves)}
        self._planned: tuple[SparseUpdate, list[Writes]] | None = None  # the last one's
        self.load(snapshot.tensors)

    def prepare(self, layout: list[Any]) -> None:
        """Nothing: there is nothing to compile."""

    def tree(self) -> dict[str, Any]:
        """Nested dicts of read-only views; they change when the model does."""
        return nested(self._views)

    def tensors(self) -> dict[str, np.ndarray]:
        """Read-only views by canonical path."""
        return dict(self._views)

    def load(self, tensors: dict[str, Any]) -> None:
        """Takes over the content of tensors of the same spec, in place."""
        for i, leaf in enumerate(self.spec.leaves):
            arena, start = self._arenas[self._widths[i]], int(self._offsets[i])
            values = np.ascontiguousarray(tensors[leaf.name]).reshape(-1)
            arena[start : start + leaf.size] = values.view(arena.dtype)

    def changed_digest(self, update: SparseUpdate, digest: np.ndarray) -> np.ndarray:
        """The digest after an update, given the one before; writes nothing, O(k)."""
        total = digest.copy()
        for writes in self._writes(update):
            old = self._arenas[writes.width][writes.at]
            total += self._change(writes, old)
        return total

    def apply(self, update: SparseUpdate) -> None:
        """Writes an update that `check.check_update` let pass; O(k)."""
        for writes in self._writes(update):
            self._arenas[writes.width][writes.at] = writes.bits

    def full_digest(self) -> np.ndarray:
        """The digest over every entry, uint32[4]."""
        return digests.numpy_digest(self._views)

    def _arena(self, width: int) -> np.ndarray:
        places = [i for i, w in enumerate(self._widths) if w == width]
        stops = ends([self.spec.leaves[i].size for i in places])
        self._offsets[places] = stops[:-1]
        return np.empty(int(stops[-1]), f"u{width}")

    def _view(self, place: int) -> np.ndarray:
        leaf, start = self.spec.leaves[place], int(self._offsets[place])
        flat = self._arenas[self._widths[place]][start : start + leaf.size]
        view = flat.view(dtype_of(leaf.dtype)).reshape(leaf.shape)
        view.flags.writeable = False
        return view

    def _writes(self, update: SparseUpdate) -> list[Writes]:
        if any(scale is not None for scale in update.section_scales()):
            return self._plan(self._resolved(update))  # bits of this moment, not to be kept
        if self._planned is None or self._planned[0] is not update:
            self._planned = update, self._plan(update)
        return self._planned[1]

    def _resolved(self, update: SparseUpdate) -> SparseUpdate:
        """The same with new bits in the place of levels."""
        columns = (update.sections, update.indices, update.values, update.section_scales())
        values = []
        for places, indices, new, scale in zip(*columns, strict=True):
            if scale is not None:
                leaf, within = self._locate(places, indices)
                new = numpy_resolve(self._arenas[4][self._offsets[leaf] + within], new, scale)
            values.append(new)
        return dataclasses.replace(update, values=tuple(values), scales=())

    def _plan(self, update: SparseUpdate) -> list[Writes]:
        rows: dict[int, list[tuple[np.ndarray, ...]]] = {}
        singles, shared = _by_width(self.spec, update.sections)
        for width, mine in singles.items():
            rows[width] = [self._single(width, update, mine)]
        for s in shared:
            for width, row in self._shared(update.sections[s], update.indices[s], update.values[s]):
                rows.setdefault(width, []).append(row)
        return [
            Writes(width, *(np.concatenate(column) for column in zip(*parts, strict=True)))
            for width, parts in rows.items()
        ]

    def _single(self, width: int, update: SparseUpdate, mine: list[int]) -> tuple[np.ndarray, ...]:
        """Sections of one leaf each, all at once: a call per leaf would cost more than its work."""
        indices, values = [update.indices[s] for s in mine], [update.values[s] for s in mine]
        if len({x.dtype for x in values}) > 1:
            values = [x.view(f"u{width}") for x in values]
        within, bits = np.concatenate(indices).astype(np.int64), np.concatenate(values)
        leaves = np.array([update.sections[s][0] for s in mine])
        leaf = np.repeat(leaves, [at.size for at in indices])
        return self._offsets[leaf] + within, bits.view(f"u{width}"), leaf, within

    def _shared(
        self, places: tuple[int, ...], indices: np.ndarray, values: np.ndarray
    ) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """A section over several leaves, by the width of their entries."""
        leaf, within = self._locate(places, indices)
        at, bits = self._offsets[leaf] + within, values.view(f"u{values.dtype.itemsize}")
        widths = np.asarray(self._widths)[leaf]
        for width in {self._widths[i] for i in places}:
            pick = widths == width
            yield width, (at[pick], bits[pick].astype(f"u{width}"), leaf[pick], within[pick])

    def _locate(self, places: tuple[int, ...], indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Leaves of the tree, and positions within them, of positions in a section."""
        positions = np.asarray(indices).astype(np.int64)
        starts = ends([self.spec.leaves[i].size for i in places])[:-1]
        which = np.searchsorted(starts, positions, side="right") - 1
        return np.asarray(places)[which], positions - starts[which]

    def _change(self, writes: Writes, old: np.ndarray) -> np.ndarray:
        words = max(1, writes.width // 4)
        before = old.view("<u4") if words == 2 else old.astype(np.uint32)
        after = writes.bits.view("<u4") if words == 2 else writes.bits.astype(np.uint32)
        places = writes.within.astype(np.uint32)
        if words == 2:
            places = np.repeat(2 * places, 2)
            places[1::2] += np.uint32(1)
        seed = self._seeds[:, writes.leaf if words == 1 else np.repeat(writes.leaf, words)]
        return digests.numpy_change(before, after, places, seed)


@functools.lru_cache(maxsize=16)
def _by_width(
    spec: TreeSpec, sections: tuple[tuple[int, ...], ...]
) -> tuple[dict[int, list[int]], list[int]]:
    """Sections of one leaf by the width of its entries, and those of several."""
    singles: dict[int, list[int]] = {}
    for s, places in enumerate(sections):
        if len(places) == 1:
            width = dtype_of(spec.leaves[places[0]].dtype).itemsize
            singles.setdefault(width, []).append(s)
    return singles, [s for s, places in enumerate(sections) if len(places) > 1]
