"""Drift, made on purpose: streams that change as they go, for experiments."""

import dataclasses
from collections.abc import Callable

import numpy as np

from cdl_jax.data.sources import ImageData
from cdl_jax.errors import ConfigError

_ROWS = 2000  # images that are changed at a time


def class_incremental(data: ImageData, *, start: int, seed: int) -> ImageData:
    """All samples ordered by class, the classes in random order: new ones come to the stream."""
    del start
    classes = np.random.default_rng(seed).permutation(data.classes)
    rank = np.argsort(classes)
    order = np.argsort(rank[data.labels], kind="stable")
    return dataclasses.replace(data, images=data.images[order], labels=data.labels[order])


def rotation(data: ImageData, *, start: int, seed: int) -> ImageData:
    """The stream's images turn slowly, by 90 degrees until its end, to a random side."""
    side = np.random.default_rng(seed).choice([-1.0, 1.0])
    images = np.array(data.images)
    for first in range(start, len(data), _ROWS):
        stop = min(first + _ROWS, len(data))
        share = (np.arange(first, stop) - start) / max(1, len(data) - start)
        images[first:stop] = _turned(images[first:stop], side * np.pi / 2 * share)
    return dataclasses.replace(data, images=images)


def label_permutation(data: ImageData, *, start: int, seed: int) -> ImageData:
    """From the middle of the stream on every label means another class: a sudden drift."""
    middle, rng = (start + len(data)) // 2, np.random.default_rng(seed)
    # A cycle through all classes in random order: none stays what it was.
    cycle = rng.permutation(data.classes)
    becomes = np.empty(data.classes, np.int32)
    becomes[cycle] = np.roll(cycle, 1)
    labels = np.array(data.labels)
    labels[middle:] = becomes[labels[middle:]]
    return dataclasses.replace(data, labels=labels)


def noise(data: ImageData, *, start: int, seed: int) -> ImageData:
    """From the middle of the stream on the images carry noise of a quarter of their range."""
    middle, rng = (start + len(data)) // 2, np.random.default_rng(seed)
    images = np.array(data.images)
    for first in range(middle, len(data), _ROWS):
        part = images[first : first + _ROWS]
        part[:] = np.clip(part + rng.normal(0, 64, part.shape), 0, 255).astype(np.uint8)
    return dataclasses.replace(data, images=images)


SCENARIOS: dict[str, Callable[..., ImageData]] = {
    "class_incremental": class_incremental,
    "rotation": rotation,
    "label_permutation": label_permutation,
    "noise": noise,
}


def scenario(name: str, data: ImageData, *, start: int, seed: int) -> ImageData:
    """A data set whose stream drifts.

    Args:
      name: one of `SCENARIOS`, or "none".
      data: the data set; it is not changed.
      start: where the stream begins.
      seed: of the scenario's random choices.

    Raises:
      ConfigError: for an unknown name.
    """
    if name == "none":
        return data
    if name not in SCENARIOS:
        raise ConfigError(f"scenario is {name!r}; give none or one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name](data, start=start, seed=seed)


def _turned(images: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] turned about their centres, nearest pixel; outside is black."""
    height, width = images.shape[1:3]
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    rows = np.rint(cos * y - sin * x + (height - 1) / 2).astype(int)
    columns = np.rint(sin * y + cos * x + (width - 1) / 2).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    out = images[np.arange(len(images))[:, None, None], rows, columns]
    return np.where(inside[..., None], out, np.uint8(0))
