"""Many small arrays as one: each array that leaves a program costs the host its hand-over."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SMALL = 1 << 18  # bytes; a larger array costs more to copy than to hand over


class _Slot(NamedTuple):
    """Of a leaf: what it is like, and its first byte in `joined`, or None for the next of `apart`.

    A NumPy view needs its start to be a multiple of its entries' size, so the widest come first.
    """

    dtype: Any
    shape: tuple[int, ...]
    start: int | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bundle:
    """A tree whose small arrays lie one behind another; made by `bundle`, within a program.

    Attributes:
      joined: uint8[bytes], little endian as all of JAX's hosts are.
      apart: the large arrays, and those whose entries are no whole bytes.
      structure: of the tree.
      slots: where each leaf is.

    Examples:
      >>> whole = jax.jit(bundle)({"a": jnp.ones((2, 2)), "b": jnp.arange(3), "c": jnp.zeros(1)})
      >>> whole.joined.shape, len(whole.apart)
      ((32,), 0)
      >>> whole.open()["b"]
      array([0, 1, 2], dtype=int32)
    """

    joined: Any
    apart: list[Any]
    structure: Any = dataclasses.field(metadata={"static": True})
    slots: tuple[_Slot, ...] = dataclasses.field(metadata={"static": True})

    def open(self) -> Any:
        """The tree, of NumPy arrays: views of the bundle's own. Waits for the program."""
        joined, apart = np.asarray(self.joined), iter(self.apart)
        leaves = [
            np.asarray(next(apart)) if start is None
            else np.ndarray(shape, dtype, joined, start)
            for dtype, shape, start in self.slots
        ]  # fmt: skip
        return jax.tree.unflatten(self.structure, leaves)

    def shapes(self) -> Any:
        """The tree of shapes and dtypes."""
        like = [jax.ShapeDtypeStruct(slot.shape, slot.dtype) for slot in self.slots]
        return jax.tree.unflatten(self.structure, like)


def bundle(tree: Any) -> Bundle:
    """A tree of arrays as a bundle; traceable."""
    leaves, structure = jax.tree.flatten(tree)
    small = [place for place, leaf in enumerate(leaves) if _fits(leaf)]
    small.sort(key=lambda place: -leaves[place].dtype.itemsize)
    ends = np.cumsum([0, *(leaves[place].nbytes for place in small)]).tolist()
    starts = dict(zip(small, ends, strict=False))
    slots = [_Slot(leaf.dtype, leaf.shape, starts.get(n)) for n, leaf in enumerate(leaves)]
    parts = [_as_bytes(leaves[place]) for place in small]
    joined = jnp.concatenate([jnp.zeros(0, jnp.uint8), *parts])
    apart = [leaf for place, leaf in enumerate(leaves) if place not in starts]
    return Bundle(joined, apart, structure, tuple(slots))


def _fits(leaf: Any) -> bool:
    """Whether a leaf is small and its entries are whole bytes that a bitcast gives."""
    for kind, about in ((jnp.integer, jnp.iinfo), (jnp.floating, jnp.finfo)):
        if jnp.issubdtype(leaf.dtype, kind):
            return leaf.nbytes <= _SMALL and about(leaf.dtype).bits == 8 * leaf.dtype.itemsize
    return leaf.dtype == bool and leaf.nbytes <= _SMALL


def _as_bytes(leaf: Any) -> jax.Array:
    if leaf.dtype == bool:
        return leaf.reshape(-1).astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(leaf, jnp.uint8).reshape(-1)
