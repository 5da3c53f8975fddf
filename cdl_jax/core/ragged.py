"""Rows of different lengths and dtypes, end to end in few arrays. Needs no JAX.

A compiled program pays some microseconds for each array that it takes or gives, whatever its size,
and an update of a large model has hundreds of rows of a few entries.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LARGE = 1 << 16  # entries; a longer row is an array of its own, so that nobody copies it


class Row(NamedTuple):
    """Where a row lies."""

    array: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Ragged(Sequence[Any]):
    """A sequence of rows, read as a tuple of arrays would be.

    Attributes:
      arrays: of NumPy or JAX, [..., entries]; leading axes are those of a scan or vmap.
      rows: static, by position in the sequence.
    """

    arrays: tuple[Any, ...]
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(map(self._row, self.rows[place]))
        return self._row(self.rows[place])

    def _row(self, row: Row) -> Any:
        whole, length = self.arrays[row.array], row.stop - row.start
        return whole if whole.shape[-1] == length else whole[..., row.start : row.stop]


def arrange(
    sizes: Sequence[int], dtypes: Sequence[Any], most: int | None = None
) -> tuple[tuple[Row, ...], list[list[int]]]:
    """Where rows of these sizes and dtypes lie, and which of them are in each array.

    Rows of one dtype and of no more than `most` entries (by default `LARGE`) share an array; the
    same sizes and dtypes always lie alike.

    Examples:
      >>> arrange([2, 3], ["float32", "float32"])
      ((Row(array=0, start=0, stop=2), Row(array=0, start=2, stop=5)), [[0, 1]])
    """
    arrays: dict[Any, list[int]] = {}
    most = LARGE if most is None else most
    for place, (size, dtype) in enumerate(zip(sizes, dtypes, strict=True)):
        arrays.setdefault(place if size > most else np.dtype(dtype), []).append(place)
    rows: list[Any] = [None] * len(sizes)
    for array, members in enumerate(arrays.values()):
        start = 0
        for place in members:
            rows[place] = Row(array, start, start + sizes[place])
            start += sizes[place]
    return tuple(rows), list(arrays.values())


def table(rows: Sequence[Row]) -> np.ndarray:
    """Rows as int64[3 * rows], for a kernel's attribute."""
    return np.array(rows, np.int64).reshape(-1)


def row_sizes(rows: Sequence[Any]) -> list[int]:
    """Entries of each row, without a slice of any."""
    if isinstance(rows, Ragged):
        return [row.stop - row.start for row in rows.rows]
    return [int(row.shape[-1]) for row in rows]


def on_host(rows: Sequence[Any]) -> Sequence[np.ndarray]:
    """The same rows in NumPy; each array comes from its device once."""
    if isinstance(rows, Ragged):
        return Ragged(tuple(map(np.asarray, rows.arrays)), rows.rows)
    return tuple(map(np.asarray, rows))
