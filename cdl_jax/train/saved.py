"""A checkpoint as it was read: bits by path, from which a tree is made again."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from cdl_jax.core.layout import bits_dtype, join
from cdl_jax.core.tree import flatten
from cdl_jax.errors import CheckpointError

RECORD, KEYS = "_record", "_keys"  # names of what goes along with a tree


class Saved(NamedTuple):
    """A checkpoint as it lies on the disk."""

    version: int
    record: dict[str, Any]  # what went along with the tree, JSON's types
    arrays: dict[str, np.ndarray]  # every leaf by its path, floats as unsigned integers

    def under(self, root: str) -> dict[str, np.ndarray]:
        """The integer arrays of a part that is a flat dict."""
        return {
            name.removeprefix(f"{root}/"): array
            for name, array in self.arrays.items()
            if name.startswith(f"{root}/")
        }

    def to_bytes(self) -> bytes:
        """All of it, for another process."""
        record = json.dumps([self.version, self.record]).encode()
        return safetensors.numpy.save({**self.arrays, RECORD: np.frombuffer(record, np.uint8)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Saved":
        """What `to_bytes` gave."""
        arrays = safetensors.numpy.load(content)
        version, record = json.loads(arrays.pop(RECORD).tobytes())
        return cls(version, record, arrays)

    def restore(self, root: str, like: Any) -> Any:
        """A part of the tree that was saved: structure, dtypes and sizes of `like`, saved bits.

        Raises:
          CheckpointError: names a leaf that is missing, or of another size.
        """
        flat = flatten(like)
        pairs = zip(flat.names, flat.leaves, strict=True)
        return flat.rebuild(
            [self._leaf(join(root, name) if root else name, leaf) for name, leaf in pairs]
        )

    def _leaf(self, name: str, like: Any) -> Any:
        if is_key(like):
            words = self._leaf(name, jax.eval_shape(jax.random.key_data, like))
            return jax.random.wrap_key_data(words, impl=self.record[KEYS][name])
        dtype = np.dtype(like.dtype)
        if not like.size:
            return jnp.zeros(like.shape, dtype)
        found = self.arrays.get(name)
        if found is None or found.shape != like.shape or found.dtype != stored_as(dtype):
            there = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise CheckpointError(
                f"the checkpoint of version {self.version} has {there} for {name}, this run needs "
                f"{dtype}{list(like.shape)}: it is of another model or optimizer; give a new --run"
            )
        return jnp.asarray(found.view(dtype))


def stored_as(dtype: np.dtype) -> np.dtype:
    """Floats are kept as unsigned integers: bits, that no library rounds."""
    return dtype if dtype.kind in "iu" else bits_dtype(dtype)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a key of JAX's, kept as its words."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
