"""Pytrees by canonical path: flatten in sorted order, specify, view as bits."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core import layout


class Structure(NamedTuple):
    """A pytree without its leaves; hashable."""

    treedef: Any
    order: tuple[int, ...]  # sorted place -> place in jax's own order

    def tree(self, leaves: Sequence[Any]) -> Any:
        """The tree with these leaves, given in sorted order."""
        placed: list[Any] = [None] * len(leaves)
        for place, leaf in zip(self.order, leaves, strict=True):
            placed[place] = leaf
        return jax.tree.unflatten(self.treedef, placed)


class Sorted(NamedTuple):
    """A tree's leaves in sorted path order, and the way back."""

    names: tuple[str, ...]
    leaves: list[Any]
    structure: Structure

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The tree with these leaves, given in sorted order."""
        return self.structure.tree(leaves)


def flatten(tree: Any) -> Sorted:
    """Leaves of a pytree, sorted by canonical path; `None` is no leaf.

    Raises:
      ValueError: when two leaves share a path, as a dict's keys 0 and "0" do.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = ["/".join(layout.escape(_key(k)) for k in path) for path, _ in paths]
    order = sorted(range(len(names)), key=names.__getitem__)
    for a, b in itertools.pairwise(order):
        if names[a] == names[b]:
            raise ValueError(f"two leaves share the path {names[a]!r}; rename one of their keys")
    structure = Structure(treedef, tuple(order))
    return Sorted(tuple(names[i] for i in order), [paths[i][1] for i in order], structure)


def tree_spec(tree: Any) -> layout.TreeSpec:
    """Paths, shapes and dtypes of a tree of arrays (or of ShapeDtypeStructs).

    Raises:
      ValueError: names the leaf whose dtype has no fixed width of 1, 2, 4 or 8 bytes.
    """
    flat = flatten(tree)
    return layout.TreeSpec(
        tuple(_leaf_spec(*pair) for pair in zip(flat.names, flat.leaves, strict=True))
    )


def to_bits(x: jax.Array) -> jax.Array:
    """The same bits as unsigned integers of the same width."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(x, layout.bits_dtype(x.dtype))


def from_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    """Inverse of `to_bits`."""
    if jnp.dtype(dtype) == jnp.bool_:
        return bits.astype(jnp.bool_)
    return jax.lax.bitcast_convert_type(bits, jnp.dtype(dtype))


def is_trainable(leaf: Any) -> bool:
    """Whether a leaf is a floating-point array, which is what an optimizer moves."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _key(entry: Any) -> object:
    for field in ("key", "name", "idx"):
        if hasattr(entry, field):
            return getattr(entry, field)
    return entry


def _leaf_spec(name: str, leaf: Any) -> layout.LeafSpec:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        raise ValueError(f"leaf {name!r} is a {type(leaf).__name__}, not an array")
    if jnp.issubdtype(dtype, jax.dtypes.prng_key) or jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"leaf {name!r} has dtype {dtype}, which cannot be deployed: keep random keys and "
            "complex numbers out of params and model_state (a loss gets its key as an argument)"
        )
    if dtype.name.startswith(("int4", "uint4", "int2", "uint2", "float4")):
        raise ValueError(f"leaf {name!r} has dtype {dtype}, narrower than a byte; widen it")
    return layout.LeafSpec(name, tuple(np.shape(leaf)), np.dtype(dtype).name)
