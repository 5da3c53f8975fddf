"""Checkpoints of a run: written beside the training, restored to the bit."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.core.layout import bits_dtype, join
from cdl_jax.core.tree import flatten
from cdl_jax.errors import CheckpointError

_RECORD, _KEYS = "_record", "_keys"


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
        if _is_key(like):
            words = self._leaf(name, jax.eval_shape(jax.random.key_data, like))
            return jax.random.wrap_key_data(words, impl=self.record[_KEYS][name])
        dtype = np.dtype(like.dtype)
        if not like.size:
            return jnp.zeros(like.shape, dtype)
        found = self.arrays.get(name)
        if found is None or found.shape != like.shape or found.dtype != _stored_as(dtype):
            there = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise CheckpointError(
                f"the checkpoint of version {self.version} has {there} for {name}, this run needs "
                f"{dtype}{list(like.shape)}: it is of another model or optimizer; give a new --run"
            )
        return jnp.asarray(found.view(dtype))


class Checkpoints:
    """A folder of checkpoints by version, of which the newest `keep` stay.

    A save copies the tree, so that the next step may donate it, and writes it from threads of
    its own. Only what was written to its end is ever listed.

    Raises:
      CheckpointError: from every method, when the folder cannot be read or written; an
        asynchronous save's failure shows in the next call.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2):
        # orbax takes a second to import, and tells of each save at length.
        logging.getLogger("absl").setLevel(logging.ERROR)
        from orbax.checkpoint import v1 as ocp

        self._folder, self._saving = folder, None
        policy: Any = ocp.training.preservation_policies.LatestN(keep)
        context = ocp.Context()
        context.array.saving.use_compression = False  # floats hardly shrink, and it costs a core
        with self._explained():
            self._orbax = ocp.training.Checkpointer(
                str(folder.absolute()),
                context=context,
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            )

    def save(self, version: int, tree: Any, record: dict[str, Any]) -> None:
        """Begins to write a checkpoint; waits for the one before it to be done."""
        self.wait()
        flat = flatten(tree)
        arrays = {
            name: _host_copy(leaf)
            for name, leaf in zip(flat.names, flat.leaves, strict=True)
            if leaf.size
        }
        kinds = {
            name: str(jax.random.key_impl(leaf))
            for name, leaf in zip(flat.names, flat.leaves, strict=True)
            if _is_key(leaf)
        }
        arrays[_RECORD] = np.frombuffer(json.dumps({**record, _KEYS: kinds}).encode(), np.uint8)
        with self._explained():
            self._saving = self._orbax.save_async(version, arrays, force=True, overwrite=True)

    def wait(self) -> None:
        """Returns when nothing is being written."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._explained():
                saving.result()

    def newest(self) -> Saved | None:
        """The newest checkpoint that was written to its end."""
        self.wait()
        with self._explained():
            latest = self._orbax.latest
            if latest is None:
                return None
            arrays: Any = self._orbax.load(latest.step)
            record = json.loads(arrays.pop(_RECORD).tobytes())
        return Saved(latest.step, record, arrays)

    def close(self) -> None:
        """Waits, and frees what orbax holds."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"cannot read or write the checkpoints in {self._folder}: {first[:200]}"
            ) from error


def _host_copy(leaf: Any) -> np.ndarray:
    """A copy: a view would disable the donation of the next step, or be overwritten by it."""
    host = np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    return host.view(_stored_as(host.dtype))


def _stored_as(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind in "iu" else bits_dtype(dtype)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
