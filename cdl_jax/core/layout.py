"""What a model's tree looks like, and the sparse update to it. Needs no JAX.

Leaves are known by canonical paths, JSON-pointer style: the keys from the root joined by `/`,
with `~` written `~0` and `/` written `~1` inside a key. All orders below are the sorted paths'.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """One tensor: canonical path, shape, dtype name (NumPy's, or ml_dtypes' such as bfloat16)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class TreeSpec:
    """All tensors of a deployed tree, sorted by path."""

    leaves: tuple[LeafSpec, ...]

    def __post_init__(self):
        names = [leaf.name for leaf in self.leaves]
        if names != sorted(set(names)):
            raise ValueError(f"leaf paths must be unique and sorted, got {names}")

    def __hash__(self):
        return hash(self.fingerprint)  # once; the leaves' would be computed at every lookup

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """16 bytes: SHA-256, cut, of one line `path TAB dtype TAB d0,d1,...` per leaf."""
        lines = [f"{x.name}\t{x.dtype}\t{','.join(map(str, x.shape))}\n" for x in self.leaves]
        return hashlib.sha256("".join(lines).encode()).digest()[:16]

    def to_json(self) -> list[list[Any]]:
        """`[path, shape, dtype]` per leaf."""
        return [[x.name, list(x.shape), x.dtype] for x in self.leaves]

    @classmethod
    def from_json(cls, rows: list[list[Any]]) -> "TreeSpec":
        """Inverse of `to_json`; raises ValueError on anything else."""
        try:
            leaves = tuple(LeafSpec(str(n), tuple(int(d) for d in s), str(t)) for n, s, t in rows)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a tree specification: {error}") from error
        return cls(leaves)


@dataclasses.dataclass(frozen=True)
class SparseUpdate:
    """The new absolute values of the entries that one version changes.

    Entries come in sections. A section names the leaves it covers (`sections`, positions in the
    sorted leaf order); its indices count in C order over the concatenation of these leaves. Per
    tensor scope gives each leaf a section of its own, global scope one section for all. Any
    sequences of arrays will do; those of a step are `Ragged`, hundreds of rows in few arrays.

    Attributes:
      indices: per section int32[k_s], ascending and unique; slots from the section's count on
        hold distinct positions past the end, which every write drops.
      values: per section [k_s], of the leaves' dtype; where a section mixes dtypes, uint32 that
        carry the values' bits.
      counts: int32[number of sections], the slots in use.
      base: uint32, the version that this one follows.
      version: uint32, the version that it makes.
      digest: uint32[4], the digest of the whole deployed tree at `version`.
      sections: static, the leaves of each section.
      fingerprint: static, `TreeSpec.fingerprint` of the deployed tree.
      scales: per section None or float32 [], a power of two s; empty for None in all. With a
        scale the values are int8 levels l, and the leaves, of float32, become old + l s at the
        version `base` (subnormal results +0.0), which makes such an update valid there alone.
    """

    indices: Sequence[Any]
    values: Sequence[Any]
    counts: Any
    base: Any
    version: Any
    digest: Any
    sections: tuple[tuple[int, ...], ...]
    fingerprint: bytes
    scales: tuple[Any, ...] = ()

    def section_scales(self) -> tuple[Any, ...]:
        """A scale or None for each section."""
        return self.scales or (None,) * len(self.sections)


def join(root: str, path: str) -> str:
    """Canonical path of a leaf of a subtree; the subtree may be the leaf itself, of path ""."""
    return f"{root}/{path}" if path else root


def escape(key: object) -> str:
    """One key of a canonical path."""
    return str(key).replace("~", "~0").replace("/", "~1")


def unescape(part: str) -> str:
    """Inverse of `escape`."""
    return part.replace("~1", "/").replace("~0", "~")


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts from canonical paths.

    Examples:
      >>> nested({"params/a/b": 1, "params/c": 2})
      {'params': {'a': {'b': 1}, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = map(unescape, name.split("/"))
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def dtype_of(name: str) -> np.dtype:
    """NumPy dtype for a dtype name, those of ml_dtypes included."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        kind = getattr(ml_dtypes, name, None)
        if kind is None:
            raise ValueError(f"unknown dtype {name!r}") from None
        return np.dtype(kind)


def bits_dtype(dtype: Any) -> np.dtype:
    """The unsigned integer type of the same width."""
    return np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")


def ends(sizes: Sequence[int]) -> np.ndarray:
    """Offsets of concatenated leaves: int64[len(sizes) + 1], from 0 to the total."""
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))]).astype(np.int64)
