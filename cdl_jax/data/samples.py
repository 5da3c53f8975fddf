"""Samples of any kind by their position: images, flat features, whatever a model takes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cdl_jax.errors import DataError

LABEL = "label"
NOT_FINITE = "a NaN or an infinity in {} as float32, which ends at 3.4e+38"
_LOOK = 1 << 24  # bytes
_NARROW = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32, "bool": np.uint8}


class Samples(Protocol):
    """What a run trains on: positions from 0 in the order of arrival."""

    @property
    def name(self) -> str:
        """Of the data set or source."""
        ...

    @property
    def labels(self) -> Any:
        """int32[N] by slices; zeros where there are none."""
        ...

    @property
    def classes(self) -> int:
        """How many there are; 0 where there are no labels."""
        ...

    def __len__(self) -> int:
        """Samples so far."""
        ...

    def batch(self, index: Any) -> dict[str, np.ndarray]:
        """The fields at the given positions, leading axis = samples."""
        ...


@dataclasses.dataclass(frozen=True)
class ArrayData:
    """Fields of one length, in memory or memory-mapped.

    Attributes:
      name: of the data set.
      fields: arrays [N, ...] by name. A batch has 64-bit numbers as 32-bit ones, for JAX.
      classes: number of classes, where the field "label" holds integers; else 0.
    """

    name: str
    fields: Mapping[str, np.ndarray]
    classes: int

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Integers [N] that tell classes apart: of the field "label", else zeros."""
        if not self.classes:
            return np.zeros(len(self), np.int32)
        return np.asarray(self.fields[LABEL]).astype(np.int32)

    def batch(self, index: Any) -> dict[str, np.ndarray]:
        """The fields at the given positions."""
        return {name: narrow(np.asarray(x[index])) for name, x in self.fields.items()}


def array_data(name: str, fields: Mapping[str, Any]) -> ArrayData:
    """Checks fields and wraps them.

    Raises:
      DataError: for no field, fields of several lengths, or of other than numbers.
    """
    single = [field for field, x in fields.items() if not x.ndim]
    if single:
        raise DataError(
            f"{name} has single values in {', '.join(single)}; give a value for each sample"
        )
    lengths = {field: len(x) for field, x in fields.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise DataError(f"{name} has fields of {lengths} samples; give one length, from 1")
    odd = {f: str(x.dtype) for f, x in fields.items() if x.dtype.kind not in "biuf"}
    if odd:
        raise DataError(f"{name} has fields of {odd}; give numbers")
    return ArrayData(name, dict(fields), classes_of(fields))


def classes_of(fields: Mapping[str, Any]) -> int:
    """One more than the largest label, where there are integer labels [N] from 0; else 0."""
    label = fields.get(LABEL)
    if label is None or label.dtype.kind not in "biu" or label.ndim != 1 or label.min() < 0:
        return 0
    return int(label.max()) + 1


def narrow(array: np.ndarray) -> np.ndarray:
    """64-bit numbers as 32-bit ones, booleans as uint8, all in the machine's byte order.

    Raises:
      DataError: for an integer that 32 bits do not hold.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    kind = _NARROW.get(array.dtype.name)
    if kind is None:
        return array
    out = array.astype(kind)
    if array.dtype.kind in "iu" and not np.array_equal(out, array):
        raise DataError(
            f"integers from {array.min()} to {array.max()} do not fit {np.dtype(kind).name}, and "
            "JAX takes 32 bits; give smaller ones"
        )
    return out


def check_finite(data: ArrayData) -> None:
    """Whether all fields hold finite numbers; a few MB of them are looked at at a time.

    Raises:
      DataError: names the first sample that has a NaN, an infinity, or what is one in 32 bits.
    """
    for field, x in data.fields.items():
        rows = max(1, _LOOK * len(x) // max(1, x.nbytes))
        for start in range(0, len(x), rows):
            odd = odd_rows(x[start : start + rows])
            if len(odd):
                raise DataError(
                    f"sample {start + odd[0]} of {data.name} has {NOT_FINITE.format(field)}; fill "
                    "it in or leave the sample out, or give --model MODULE:FACTORY, which takes "
                    "any numbers"
                )


def odd_rows(array: np.ndarray) -> np.ndarray:
    """Positions along the leading axis at which floats are not all finite once in 32 bits."""
    if array.dtype.kind != "f":
        return np.zeros(0, np.int64)
    with np.errstate(over="ignore"):
        return np.flatnonzero(~np.isfinite(narrow(array)).reshape(len(array), -1).all(1))


def inputs_of(batch: Mapping[str, Any]) -> Any:
    """What a model predicts from: the only field but the label, or a dict of all but the label."""
    rest = {name: x for name, x in batch.items() if name != LABEL}
    return next(iter(rest.values())) if len(rest) == 1 else rest
