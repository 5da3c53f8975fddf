"""`Ragged` rows of JAX arrays, inside programs and out of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from cdl_jax.core.ragged import Ragged, Row, arrange

jax.tree_util.register_dataclass(Ragged, data_fields=["arrays"], meta_fields=["rows"])


def join(rows: Sequence[jax.Array]) -> Ragged:
    """Rows [k] as `arrange` lays them. Of slices of joined rows XLA makes no copy."""
    if isinstance(rows, Ragged):
        return rows
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


def _end_to_end(rows: list[jax.Array]) -> jax.Array:
    return rows[0] if len(rows) == 1 else jax.lax.concatenate(rows, 0)
