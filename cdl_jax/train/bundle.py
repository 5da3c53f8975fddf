"""Many small arrays as a few: each one that leaves a program costs the host its hand-over."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SMALL = 1 << 16  # entries; a larger array costs more to copy than to hand over


class Slot(NamedTuple):
    """Where a leaf is in its bundle: joined[dtype][start:stop], or the next of `large`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bundle:
    """A tree whose small arrays lie one behind another; made by `bundle`, within a program.

    Attributes:
      joined: by dtype, one-dimensional.
      large: the other arrays.
      structure: of the tree.
      slots: where each leaf is.

    Examples:
      >>> tree = {"a": jnp.ones((2, 2)), "b": jnp.arange(3), "c": jnp.zeros(1)}
      >>> whole = jax.jit(bundle)(tree)
      >>> {name: x.shape for name, x in whole.joined.items()}
      {'float32': (5,), 'int32': (3,)}
      >>> jax.device_get(whole).open()["b"]
      array([0, 1, 2], dtype=int32)
    """

    joined: dict[str, Any]
    large: list[Any]
    structure: Any = dataclasses.field(metadata={"static": True})
    slots: tuple[Slot, ...] = dataclasses.field(metadata={"static": True})

    def open(self) -> Any:
        """The tree, of NumPy arrays: views of the bundle's own."""
        large = iter(self.large)
        leaves = [
            next(large) if slot.stop is None
            else self.joined[slot.dtype][slot.start : slot.stop].reshape(slot.shape)
            for slot in self.slots
        ]  # fmt: skip
        return jax.tree.unflatten(self.structure, leaves)

    def shapes(self) -> Any:
        """The tree of shapes and dtypes."""
        like = [jax.ShapeDtypeStruct(slot.shape, slot.dtype) for slot in self.slots]
        return jax.tree.unflatten(self.structure, like)


def bundle(tree: Any) -> Bundle:
    """A tree of arrays as a bundle; traceable."""
    leaves, structure = jax.tree.flatten(tree)
    small: dict[str, list[jax.Array]] = {}
    used: dict[str, int] = {}
    slots = []
    for leaf in leaves:
        name, start, stop = np.dtype(leaf.dtype).name, 0, None
        if leaf.size <= _SMALL:
            small.setdefault(name, []).append(leaf.reshape(-1))
            start = used.get(name, 0)
            stop = used[name] = start + leaf.size
        slots.append(Slot(name, leaf.shape, start, stop))
    joined = {name: jnp.concatenate(some) for name, some in small.items()}
    return Bundle(joined, [x for x in leaves if x.size > _SMALL], structure, tuple(slots))
