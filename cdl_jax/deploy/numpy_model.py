"""A deployed tree in NumPy: one arena for each width of entry, with a view per leaf."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import SparseUpdate, TreeSpec, dtype_of, ends, nested
from cdl_jax.core.levels import numpy_resolve
from cdl_jax.deploy.arena import Changes, change, write
from cdl_jax.deploy.gate import PredictFn, predict
from cdl_jax.wire import Snapshot

Plan = list[Changes] | SparseUpdate


class NumpyModel:
    """Holds a tree, changes k entries of it in O(k), hashes it. Needs no JAX."""

    def __init__(self, snapshot: Snapshot):
        self.spec: TreeSpec = snapshot.spec
        self._widths = [dtype_of(leaf.dtype).itemsize for leaf in self.spec.leaves]
        self._seeds = np.stack([digests.seeds(leaf.name, leaf.dtype) for leaf in self.spec.leaves])
        self._offsets = np.zeros(len(self._widths), np.int64)
        self._arenas = {width: self._arena(width) for width in set(self._widths)}
        self._views = {leaf.name: self._view(i) for i, leaf in enumerate(self.spec.leaves)}
        self.load(snapshot.tensors)

    def prepare(self, layout: list[Any]) -> None:
        """Nothing: there is nothing to compile."""

    def tree(self) -> dict[str, Any]:
        """Nested dicts of read-only views; they change when the model does."""
        return nested(self._views)

    def predict(self, predict_fn: PredictFn, inputs: Any) -> Any:
        """Outputs of the tree."""
        return predict(predict_fn, self.tree(), inputs)

    def tensors(self) -> dict[str, np.ndarray]:
        """Read-only views by canonical path."""
        return dict(self._views)

    def load(self, tensors: dict[str, Any]) -> None:
        """Takes over the content of tensors of the same spec, in place."""
        for i, leaf in enumerate(self.spec.leaves):
            arena, start = self._arenas[self._widths[i]], int(self._offsets[i])
            values = np.ascontiguousarray(tensors[leaf.name]).reshape(-1)
            arena[start : start + leaf.size] = values.view(arena.dtype)

    def plan(self, update: SparseUpdate) -> Plan:
        """An update as places and bits; where it has levels, these depend on what is there."""
        if any(scale is not None for scale in update.section_scales()):
            return update
        return self._changes(update)

    def changed_digest(self, plan: Plan, digest: np.ndarray) -> np.ndarray:
        """The digest after a plan, given the one before; writes nothing, O(k)."""
        total = digest.copy()
        for changes in self._placed(plan):
            total += change(self._arenas[changes.width], changes)
        return total

    def apply(self, plan: Plan) -> None:
        """Writes a plan; O(k)."""
        for changes in self._placed(plan):
            write(self._arenas[changes.width], changes)

    def write(self, plans: Sequence[Plan], digest: np.ndarray) -> np.ndarray:
        """Writes plans in order; the digest after the last one, given the one before it."""
        *earlier, last = plans
        for plan in earlier:
            self.apply(plan)
        digest = self.changed_digest(last, digest)
        self.apply(last)
        return digest

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

    def _placed(self, plan: Plan) -> list[Changes]:
        return plan if isinstance(plan, list) else self._changes(self._resolved(plan))

    def _resolved(self, update: SparseUpdate) -> SparseUpdate:
        """The same with new bits in the place of levels."""
        columns = (update.sections, update.indices, update.values, update.section_scales())
        values = []
        for places, indices, new, scale in zip(*columns, strict=True):
            if scale is not None:
                leaves, counts, within = self._runs(places, indices)
                old = self._arenas[4][np.repeat(self._offsets[leaves], counts) + within]
                new = numpy_resolve(old, new, scale)
            values.append(new)
        return dataclasses.replace(update, values=tuple(values), scales=())

    def _changes(self, update: SparseUpdate) -> list[Changes]:
        rows: dict[int, list[_Runs]] = {}
        singles, shared = _by_width(self.spec, update.sections)
        for width, mine in singles.items():
            rows[width] = [_single(width, update, mine)]
        for s in shared:
            for width, runs in self._shared(
                update.sections[s], update.indices[s], update.values[s]
            ):
                rows.setdefault(width, []).append(runs)
        return [self._joined(width, parts) for width, parts in rows.items()]

    def _joined(self, width: int, parts: list["_Runs"]) -> Changes:
        leaves, counts, positions, bits = map(_concatenated, zip(*parts, strict=True))
        seeds = np.ascontiguousarray(self._seeds[leaves])
        return Changes(width, self._offsets[leaves], counts, seeds, positions, bits)

    def _shared(
        self, places: tuple[int, ...], indices: np.ndarray, values: np.ndarray
    ) -> Iterator[tuple[int, "_Runs"]]:
        """A section over several leaves, by the width of their entries."""
        leaves, counts, within = self._runs(places, indices)
        bits, widths = values.view(f"u{values.dtype.itemsize}"), np.asarray(self._widths)[leaves]
        for width in {self._widths[i] for i in places}:
            mine = widths == width
            pick = np.repeat(mine, counts)
            yield (
                width,
                _Runs(leaves[mine], counts[mine], within[pick], bits[pick].astype(f"u{width}")),
            )

    def _runs(self, places: tuple[int, ...], indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """Leaves, how many entries each has, and positions within them, of a section."""
        starts = ends([self.spec.leaves[i].size for i in places])
        counts = np.diff(np.searchsorted(indices, starts)).astype(np.int32)
        within = indices - np.repeat(starts[:-1], counts).astype(np.int32)
        return np.asarray(places), counts, within


class _Runs(NamedTuple):
    leaves: np.ndarray  # int64[runs]
    counts: np.ndarray  # int32[runs]
    positions: np.ndarray  # int32[k], within the leaf
    bits: np.ndarray  # unsigned [k]


def _single(width: int, update: SparseUpdate, mine: list[int]) -> _Runs:
    """Sections of one leaf each, all at once: a call per leaf would cost more than its work."""
    indices, values = [update.indices[s] for s in mine], [update.values[s] for s in mine]
    if len({x.dtype for x in values}) > 1:
        values = [x.view(f"u{width}") for x in values]
    return _Runs(
        np.array([update.sections[s][0] for s in mine]),
        np.array([at.size for at in indices], np.int32),
        _concatenated(indices).astype(np.int32, copy=False),
        _concatenated(values).view(f"u{width}"),
    )


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)


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
