"""Decoded images kept beside the user's other caches: decoding MNIST takes seconds each time."""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]


def cached(folder: pathlib.Path, split: str, read: Callable[[], Arrays]) -> Arrays:
    """Images (memory-mapped) and labels of one split, from the cache or read and kept.

    Args:
      folder: the data set's own folder; names, sizes and times of its files are the cache's key.
      split: name of the split.
      read: gives the arrays when the cache has none, or cannot be written.
    """
    place = cache_folder() / f"{folder.parent.name}-{split}-{_key(folder)}"
    if not (place / "labels.npy").exists():
        arrays = read()
        try:
            _keep(place, arrays)
        except OSError:
            return arrays
    images = np.load(place / "images.npy", mmap_mode="r")
    return np.asarray(images), np.load(place / "labels.npy")  # a memmap's rows are slower to take


def _keep(place: pathlib.Path, arrays: Arrays) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(dir=place.parent))
    np.save(draft / "images.npy", arrays[0])
    np.save(draft / "labels.npy", arrays[1])
    try:
        draft.rename(place)
    except OSError:
        if not (place / "labels.npy").exists():  # else another process was quicker
            raise


def _key(folder: pathlib.Path) -> str:
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def cache_folder() -> pathlib.Path:
    """Where this package keeps what it can make again: $XDG_CACHE_HOME/cdl_jax."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cdl_jax"
