"""Drift, made on purpose: streams that change as they go, for experiments."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from cdl_jax.data.samples import LABEL, ArrayData
from cdl_jax.data.sources import ImageData
from cdl_jax.errors import ConfigError

_ROWS = 2000  # samples that are changed at a time
Fields = Mapping[str, np.ndarray]
Data = TypeVar("Data", bound=ImageData | ArrayData)


def class_incremental(fields: Fields, *, classes: int, start: int, stop: int, seed: int) -> Fields:
    """The run's samples ordered by class, the classes in random order: new ones come to it."""
    rank = np.argsort(np.random.default_rng(seed).permutation(classes))
    ranks = rank[fields[LABEL][:stop]]
    order = np.argsort(ranks, kind="stable")
    if ranks[order[start - 1]] == ranks[order[-1]]:
        raise ConfigError(
            f"scenario class_incremental brings no new class to samples {start} to {stop}; take a "
            "longer stream (--limit), or fewer --initial-samples"
        )
    order = np.concatenate([order, np.arange(stop, len(fields[LABEL]))])
    return {name: x[order] for name, x in fields.items()}


def rotation(fields: Fields, *, classes: int, start: int, stop: int, seed: int) -> Fields:
    """The stream's images turn slowly, by 90 degrees until its end, to a random side."""
    del classes
    side = np.random.default_rng(seed).choice([-1.0, 1.0])

    def turn(images: np.ndarray) -> np.ndarray:
        images = np.array(images)
        for first in range(start, stop, _ROWS):
            last = min(first + _ROWS, stop)
            share = (np.arange(first, last) - start) / max(1, stop - start)
            images[first:last] = _turned(images[first:last], side * np.pi / 2 * share)
        return images

    return _changed("rotation", fields, lambda x: x.ndim == 4, "images [N, H, W, C]", turn)


def label_permutation(fields: Fields, *, classes: int, start: int, stop: int, seed: int) -> Fields:
    """From the middle of the stream on every label means another class: a sudden drift."""
    middle, rng = (start + stop) // 2, np.random.default_rng(seed)
    # A cycle through all classes in random order: none stays what it was.
    cycle = rng.permutation(classes)
    becomes = np.empty(classes, np.int32)
    becomes[cycle] = np.roll(cycle, 1)
    labels = np.array(fields[LABEL])
    labels[middle:] = becomes[labels[middle:]]
    return {**fields, LABEL: labels}


def noise(fields: Fields, *, classes: int, start: int, stop: int, seed: int) -> Fields:
    """From the middle of the stream on the inputs carry noise of a quarter of their range.

    That is 0 to 255 of bytes; of floats, what the initial samples span, in each feature of a flat
    field.
    """
    del classes
    middle, rng = (start + stop) // 2, np.random.default_rng(seed)

    def blur(x: np.ndarray) -> np.ndarray:
        scale, (low, high) = _quarter(x[:start]), _limits(x.dtype)
        x = np.array(x)
        for first in range(middle, len(x), _ROWS):
            part = x[first : first + _ROWS]
            noisy = np.clip(part + rng.normal(0, scale, part.shape), low, high).astype(x.dtype)
            part[:] = np.where(np.isinf(part), part, noisy)
        return x

    return _changed("noise", fields, _is_noisy, "floats or uint8[N, ...]", blur)


SCENARIOS: dict[str, Callable[..., Fields]] = {
    "class_incremental": class_incremental,
    "rotation": rotation,
    "label_permutation": label_permutation,
    "noise": noise,
}


def scenario(name: str, data: Data, *, start: int, seed: int, stop: int | None = None) -> Data:
    """A data set whose stream drifts. Fields that change are copied into memory.

    Args:
      name: one of `SCENARIOS`, or "none".
      data: the data set; it is not changed.
      start, stop: where the stream begins, and where the run ends; None: with the data.
      seed: of the scenario's random choices.

    Raises:
      ConfigError: for an unknown name, or data or a stream in which the change cannot be.
    """
    if name == "none":
        return data
    if name not in SCENARIOS:
        raise ConfigError(f"scenario is {name!r}; give none or one of {', '.join(SCENARIOS)}")
    stop = len(data) if stop is None else min(stop, len(data))
    if stop - start < 2:
        raise ConfigError(
            f"scenario {name} changes the stream on its way, but this has {stop - start} "
            "sample(s); give a larger --limit, or fewer --initial-samples"
        )
    if data.classes < 2 and name in ("class_incremental", "label_permutation"):
        raise ConfigError(
            f"scenario {name} needs a field {LABEL!r} of two classes or more, but {data.name} has "
            f"{data.classes}; give none"
        )
    change, given = SCENARIOS[name], {"classes": data.classes, "start": start, "stop": stop}
    if isinstance(data, ArrayData):
        return dataclasses.replace(data, fields=change(data.fields, seed=seed, **given))
    made = change({"image": data.images, LABEL: data.labels}, seed=seed, **given)
    return dataclasses.replace(data, images=made["image"], labels=made[LABEL])


def _changed(
    name: str,
    fields: Fields,
    fits: Callable[[np.ndarray], bool],
    wanted: str,
    change: Callable[[np.ndarray], np.ndarray],
) -> Fields:
    """The fields with those that fit changed; the label never is."""
    chosen = {n: change(x) for n, x in fields.items() if n != LABEL and fits(x)}
    if not chosen:
        there = ", ".join(f"{n} {x.dtype}{list(x.shape)}" for n, x in fields.items())
        raise ConfigError(f"scenario {name} is for {wanted}, but the data have {there}; give none")
    return {**fields, **chosen}


def _is_noisy(x: np.ndarray) -> bool:
    # Integers, and single bytes, may be names of things: an embedding has no row in between.
    return x.dtype.kind == "f" or (x.dtype == np.uint8 and x.ndim > 1)


def _quarter(initial: np.ndarray) -> Any:
    if initial.dtype == np.uint8:
        return 64
    axes = 0 if initial.ndim < 3 else None
    span = np.nanmax(initial, axes) - np.nanmin(initial, axes)
    return np.nan_to_num(span.astype(np.float64) / 4, posinf=0.0)


def _limits(dtype: np.dtype) -> tuple[float, float]:
    return (0, 255) if dtype == np.uint8 else (np.finfo(dtype).min, np.finfo(dtype).max)


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
    return np.where(inside[..., None], out, np.zeros((), out.dtype))
