"""`Ragged` rows of JAX arrays, inside programs and out of them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from cdl_jax.core.ragged import Ragged, Row, arrange

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
        return self.rows[place].reshape(self.shapes[place])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _end_to_end(rows: list[jax.Array]) -> jax.Array:
    return rows[0] if len(rows) == 1 else jax.lax.concatenate(rows, 0)
