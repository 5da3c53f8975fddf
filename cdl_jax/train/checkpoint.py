"""Checkpoints of a run: written beside the training, restored to the bit."""

import contextlib
import json
import logging
import multiprocessing
import pathlib
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from cdl_jax.core.layout import bits_dtype, join
from cdl_jax.core.tree import flatten
from cdl_jax.errors import CheckpointError

_RECORD, _KEYS = "_record", "_keys"
_CONTENT, _INDEX = "_content", "_index"
_ALIGNED, _SMALL = 64, 1 << 20  # bytes


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
        return safetensors.numpy.save({**self.arrays, _RECORD: np.frombuffer(record, np.uint8)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Saved":
        """What `to_bytes` gave."""
        arrays = safetensors.numpy.load(content)
        version, record = json.loads(arrays.pop(_RECORD).tobytes())
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
        self._folder, self._keep, self._saving = folder.absolute(), keep, None
        self._pool = None
        if jax.process_count() > 1:
            # Orbax would wait for all processes of the run; one of its own knows of no others.
            alone = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, alone, initializer=_on_the_cpu)
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            for half_written in folder.iterdir():
                if not half_written.name.isdigit():
                    shutil.rmtree(half_written)

    def save(self, version: int, tree: Any, record: dict[str, Any]) -> None:
        """Begins to write a checkpoint; waits for the one before it to be done."""
        self.wait()
        flat = flatten(tree)
        leaves = {n: x for n, x in zip(flat.names, flat.leaves, strict=True) if x.size}
        kinds = {
            name: str(jax.random.key_impl(leaf))
            for name, leaf in zip(flat.names, flat.leaves, strict=True)
            if _is_key(leaf)
        }
        leaves[_RECORD] = np.frombuffer(json.dumps({**record, _KEYS: kinds}).encode(), np.uint8)
        arrays = _host_copies(leaves)
        with self._explained():
            path, pool = self._folder / str(version), self._pool
            self._saving = pool.submit(_write, path, arrays) if pool else _begin(path, arrays)

    def wait(self) -> None:
        """Returns when nothing is being written, and what is too old is gone."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._explained():
                saving.result()
                for version in self._versions()[: -self._keep]:
                    shutil.rmtree(self._folder / str(version))

    def newest(self) -> Saved | None:
        """The newest checkpoint that was written to its end."""
        self.wait()
        versions = self._versions()
        if not versions:
            return None
        with self._explained():
            path = self._folder / str(versions[-1])
            arrays = _read(path) if self._pool is None else self._pool.submit(_read, path).result()
            record = json.loads(arrays.pop(_RECORD).tobytes())
        return Saved(versions[-1], record, arrays)

    def close(self) -> None:
        """Waits."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def _versions(self) -> list[int]:
        """Orbax gives a folder its name when all is in it."""
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"cannot read or write the checkpoints in {self._folder}: {first[:200]}"
            ) from error


def _begin(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> Any:
    """Starts to write; `result()` of what it returns waits for the end."""
    # orbax takes a second to import, and tells of each save at length.
    logging.getLogger("absl").setLevel(logging.ERROR)
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.use_compression = False  # floats hardly shrink, and it costs a core
    with context:
        return ocp.save_async(str(path), arrays, overwrite=True)


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    _begin(path, arrays).result()


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    logging.getLogger("absl").setLevel(logging.ERROR)
    from orbax.checkpoint import v1 as ocp

    arrays: Any = ocp.load(str(path))
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    if _INDEX in arrays:  # once every leaf was an array of its own
        arrays |= _unpacked(arrays.pop(_CONTENT), arrays.pop(_INDEX))
    return arrays


def _on_the_cpu() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the run
    jax.config.update("jax_platforms", "cpu")


def _host_copies(leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    """The large leaves, and all small ones in one array: orbax takes a millisecond for each array.

    Copies, since a view would disable the donation of the next step, or be overwritten by it.
    """
    index, end, arrays = [], 0, {}
    for name, leaf in leaves.items():
        words = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        dtype = _stored_as(np.dtype(words.dtype))
        size = words.size * dtype.itemsize
        if size >= _SMALL:
            arrays[name] = np.empty(words.shape, dtype)
        else:
            index.append([name, dtype.name, words.shape, end])
            end += -(-size // _ALIGNED) * _ALIGNED
    arrays[_CONTENT] = np.zeros(end, np.uint8)
    arrays[_INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    places = arrays | _unpacked(arrays[_CONTENT], arrays[_INDEX])
    for name, leaf in leaves.items():
        host = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        places[name][...] = host.view(places[name].dtype)
    return arrays


def _unpacked(content: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    """The small leaves by name, as views."""
    return {
        name: np.ndarray(shape, dtype, content, start)
        for name, dtype, shape, start in json.loads(index.tobytes())
    }


def _stored_as(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind in "iu" else bits_dtype(dtype)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
