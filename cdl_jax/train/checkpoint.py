"""Checkpoints of a run: written beside the training, restored to the bit."""

import contextlib
import json
import logging
import multiprocessing
import pathlib
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import xxhash

from cdl_jax.core.tree import flatten
from cdl_jax.errors import CheckpointError
from cdl_jax.train.saved import KEYS, RECORD, Saved, is_key, stored_as

_CONTENT, _INDEX, _DIGEST = "_content", "_index", "_digest"
_ALIGNED, _SMALL = 64, 1 << 20  # bytes


class Checkpoints:
    """A folder of checkpoints by version, of which the newest `keep` stay.

    A save copies the tree, so that the next step may donate it, and writes it from a thread of
    its own. Only what was written to its end is ever listed, and a digest tells what has changed
    since.

    Args:
      folder: theirs alone.
      keep: how many stay.
      mend: what to do when none of those that are there is whole, for a sentence.

    Raises:
      CheckpointError: from every method, when the folder cannot be read or written; an
        asynchronous save's failure shows in the next call.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep: int = 2,
        mend: str = "delete it, and start the same command again",
    ):
        self._folder, self._keep, self._mend = folder.absolute(), keep, mend
        self._saving, self._pool = None, _pool()
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
            if is_key(leaf)
        }
        leaves[RECORD] = np.frombuffer(json.dumps({**record, KEYS: kinds}).encode(), np.uint8)
        arrays = _host_copies(leaves)
        with self._explained():
            path = self._folder / str(version)
            self._saving = version, self._pool.submit(_write, path, arrays)

    def wait(self) -> None:
        """Returns when nothing is being written, and what is too old is gone."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._explained():
                newest, written = saving
                written.result()
                versions = self._versions()
                # What is above it was damaged, and passed over by `newest`.
                above = [version for version in versions if version > newest]
                for version in versions[: -self._keep - len(above)] + above:
                    shutil.rmtree(self._folder / str(version))

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole; says so where that is not the newest one.

        Raises:
          CheckpointError: when there are some, and none is whole.
        """
        self.wait()
        damaged = ""
        for version in reversed(self._versions()):
            try:
                saved = self._load(version)
            except CheckpointError as error:
                damaged = damaged or str(error)
                continue
            if damaged:
                print(f"cdl-jax: {damaged}; going on from version {version}", file=sys.stderr)
            return saved
        if damaged:
            raise CheckpointError(f"{damaged}, and no other in {self._folder}: {self._mend}")
        return None

    def close(self) -> None:
        """Waits."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _load(self, version: int) -> Saved:
        path = self._folder / str(version)
        try:
            arrays = self._pool.submit(_read, path).result()
            record = json.loads(arrays.pop(RECORD).tobytes())
        except Exception as error:  # whatever orbax and its libraries make of damaged bytes
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"the checkpoint {path} is damaged ({why[:200]})") from error
        return Saved(version, record, arrays)

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


def _pool() -> Executor:
    """Does all reading and writing: digests and orbax must not hold the training up."""
    if jax.process_count() == 1:
        return ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
    # Orbax would wait for all processes of the run; one of its own knows of no others.
    alone = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, alone, initializer=_on_the_cpu)


def _orbax() -> Any:
    # It takes a second to import, and tells of each save at length.
    logging.getLogger("absl").setLevel(logging.ERROR)
    from orbax.checkpoint import v1 as ocp

    return ocp


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    ocp = _orbax()
    context = ocp.Context()
    context.array.saving.use_compression = False  # floats hardly shrink, and it costs a core
    with context:
        ocp.save(str(path), arrays | {_DIGEST: _digest(path, arrays)}, overwrite=True)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    arrays: Any = _orbax().load(str(path))
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    found = arrays.pop(_DIGEST, None)
    if found is None or found.tobytes() != _digest(path, arrays).tobytes():
        raise ValueError("its digest is another" if found is not None else "it has no digest")
    return arrays | _unpacked(arrays.pop(_CONTENT), arrays.pop(_INDEX))


def _digest(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Of the version and of every array's name, dtype, shape and bytes."""
    digest = xxhash.xxh3_128(path.name.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _on_the_cpu() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the run
    jax.config.update("jax_platforms", "cpu")


def _host_copies(leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    """The large leaves, and all small ones in one array: orbax takes a millisecond for each array.

    Copies, since a view would disable the donation of the next step, or be overwritten by it.
    """
    index, end, arrays = [], 0, {}
    for name, leaf in leaves.items():
        words = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        dtype = stored_as(np.dtype(words.dtype))
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
        host = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        places[name][...] = host.view(places[name].dtype)
    return arrays


def _unpacked(content: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    """The small leaves by name, as views."""
    return {
        name: np.ndarray(shape, dtype, content, start)
        for name, dtype, shape, start in json.loads(index.tobytes())
    }
