"""`Ragged` rows of JAX arrays, inside programs and out of them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cdl_jax.core.ragged import Ragged, Row, arrange
from cdl_jax.core.tree import flatten

jax.tree_util.register_dataclass(Ragged, data_fields=["arrays"], meta_fields=["rows"])


def join(rows: Sequence[jax.Array]) -> Ragged:
    """Rows [k] as `arrange` lays them. Of slices of joined rows XLA makes no copy."""
    if isinstance(rows, Ragged):
        return rows
    for row in rows:
        if row.ndim != 1:
            raise ValueError(f"a row has the shape {row.shape}; flatten it")
    where, members = arrange([row.size for row in rows], [row.dtype for row in rows])
    return Ragged(tuple(_end_to_end([rows[i] for i in each]) for each in members), where)


def room(
    sizes: Sequence[int], dtypes: Sequence[Any]
) -> tuple[list[jax.ShapeDtypeStruct], tuple[Row, ...]]:
    """Shapes of the arrays that rows of these sizes and dtypes take, and where each row lies."""
    where, members = arrange(sizes, dtypes)
    shapes = [
        jax.ShapeDtypeStruct((sum(sizes[i] for i in each),), dtypes[each[0]]) for each in members
    ]
    return shapes, where


def over(function: Callable[..., jax.Array], *operands: Ragged) -> Ragged:
    """An elementwise function of rows that lie alike, array by array."""
    first = operands[0]
    if any(other.rows != first.rows for other in operands):
        raise ValueError("the rows lie differently; join them alike")
    columns = zip(*(each.arrays for each in operands), strict=True)
    return Ragged(tuple(function(*column) for column in columns), first.rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JoinedLeaves(Mapping[str, Any]):
    """Leaves of a tree by canonical path, each a row in few arrays.

    Attributes:
      rows: per leaf [size], in the order of the names.
      names, shapes: of the leaves, static.
    """

    rows: Ragged
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        place = self.names.index(name)
        row = self.rows[place]
        return row.reshape(*row.shape[:-1], *self.shapes[place])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def join_leaves(tree: Any) -> JoinedLeaves:
    """All leaves of a tree, joined."""
    flat = flatten(tree)
    rows = join([leaf.reshape(-1) for leaf in flat.leaves])
    return JoinedLeaves(rows, flat.names, tuple(leaf.shape for leaf in flat.leaves))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Leaves(Sequence[Any]):
    """All leaves of a tree, each an array of its own or a row of one.

    Attributes:
      arrays: of any shape; [entries] where it is not a single leaf's.
      rows: per leaf, over an array's entries in C order.
    """

    arrays: tuple[jax.Array, ...]
    rows: tuple[Row, ...] = dataclasses.field(metadata={"static": True})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        array, start, stop = self.rows[place]
        whole = self.arrays[array]
        return whole if whole.size == stop - start else whole[start:stop]

    def only(self, places: Sequence[int]) -> tuple["Leaves", list[int]]:
        """The leaves at these places, and which arrays they lie in."""
        used = sorted({self.rows[i].array for i in places})
        number = {array: at for at, array in enumerate(used)}
        rows = [self.rows[i]._replace(array=number[self.rows[i].array]) for i in places]
        return Leaves(tuple(self.arrays[a] for a in used), tuple(rows)), used

    def replaced(self, written: Sequence[jax.Array]) -> "Leaves":
        """The same arrays with these leaves in their places, every other entry as it was."""
        parts: list[dict[int, jax.Array]] = [{} for _ in self.arrays]
        for row, leaf in zip(self.rows, written, strict=True):
            parts[row.array][row.start] = leaf
        both = zip(self.arrays, parts, strict=True)
        return Leaves(tuple(_with_parts(*each) for each in both), self.rows)


def apart(arrays: Sequence[jax.Array]) -> Leaves:
    """Leaves that are arrays of their own."""
    if isinstance(arrays, Leaves):
        return arrays
    return Leaves(tuple(arrays), tuple(Row(i, 0, int(np.size(x))) for i, x in enumerate(arrays)))


def _with_parts(whole: jax.Array, parts: dict[int, jax.Array]) -> jax.Array:
    """An array with parts that begin at some entries, or a single one that is all of it."""
    if [part.size for part in parts.values()] == [whole.size]:
        return next(iter(parts.values()))
    pieces, done = [], 0
    for start in sorted(parts):
        pieces += [whole[done:start], parts[start]]
        done = start + parts[start].size
    return jax.lax.concatenate([*pieces, whole[done:]], 0)


def _end_to_end(rows: list[jax.Array]) -> jax.Array:
    return rows[0] if len(rows) == 1 else jax.lax.concatenate(rows, 0)
