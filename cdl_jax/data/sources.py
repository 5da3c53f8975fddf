"""Image data sets as random-access arrays, in their original order."""

import dataclasses
import logging
import os
import pathlib
import re
from typing import Any

import numpy as np

from cdl_jax.data.cache import cached
from cdl_jax.data.samples import LABEL, ArrayData, array_data
from cdl_jax.errors import DataError

Channels = tuple[float, ...]
TFDS = "tfds"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_ROWS = 1000  # records that are decoded at a time


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images and labels of one split, with the normalisation that belongs to them.

    Attributes:
      name: of the data set.
      images: uint8[N, H, W, C].
      labels: int32[N], 0 to classes - 1.
      classes: number of classes.
      mean, std: per channel, of pixels scaled to [0, 1]; a model sees (x / 255 - mean) / std.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: int
    mean: Channels
    std: Channels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Any) -> dict[str, np.ndarray]:
        """`{"image": uint8[n, H, W, C], "label": int32[n]}` at the given positions."""
        return {"image": self.images[index], "label": self.labels[index]}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is known of a data set before it is read, and the run that suits it."""

    source: str  # "tfds" or "embedded"
    mean: Channels
    std: Channels
    initial_samples: int
    epochs: int


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DATASETS = {
    "digits": Kind("embedded", (0.2243,), (0.3492,), 400, 20),
    "mnist": Kind("tfds", (0.1307,), (0.3081,), 10_000, 10),
    "fashion_mnist": Kind("tfds", (0.2860,), (0.3530,), 10_000, 10),
    "cifar10": Kind("tfds", *_IMAGENET, 10_000, 25),
}


def load(name: str, *, split: str = "train", data_dir: str | None = None) -> ImageData:
    """Reads a data set by name.

    Args:
      name: one of `DATASETS`.
      split: "train" or "test"; digits has "train" alone.
      data_dir: folder of tensorflow_datasets; by default $TFDS_DATA_DIR, else
        ~/tensorflow_datasets.

    Raises:
      DataError: when the name is unknown or the data are not there; says how to mend it.
    """
    if name not in DATASETS:
        raise DataError(f"dataset is {name!r}; give one of {', '.join(DATASETS)}")
    if DATASETS[name].source == "embedded":
        return _digits(split)
    images, labels = _from_tfds(name, split, data_dir)
    return _image_data(name, images, labels)


def load_tfds(url: str, *, data_dir: str | None = None) -> ArrayData:
    """Images and labels of any data set of tensorflow_datasets that is on the disk.

    Args:
      url: tfds:NAME, tfds:NAME/CONFIG, and perhaps :SPLIT behind it, as tfds takes it; else train.
      data_dir: as `load`'s.

    Raises:
      DataError: when it is not there, or is no set of images of one shape and their labels.
    """
    name, _, split = url.removeprefix(f"{TFDS}:").partition(":")
    if not re.fullmatch(r"\w+(/[\w.-]+)?", name):
        raise DataError(f"dataset is {url!r}; give tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:SPLIT")
    images, labels = _from_tfds(name, split or "train", data_dir)
    return array_data(TFDS, {"image": images, LABEL: labels})


def from_arrays(
    images: np.ndarray, labels: np.ndarray, *, mean: Channels, std: Channels, name: str = "arrays"
) -> ImageData:
    """Wraps arrays of your own.

    Args:
      images: uint8[N, H, W, C].
      labels: integers [N], from 0.
      mean, std: per channel, of pixels scaled to [0, 1].

    Raises:
      DataError: when shapes or dtypes do not fit together.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
        raise DataError(f"images are {images.dtype}{list(images.shape)}; give uint8[N, H, W, C]")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(
            f"labels are {labels.dtype}{list(labels.shape)} for {len(images)} images; give one "
            "integer from 0 for each"
        )
    if {len(mean), len(std)} != {images.shape[3]} or min(std) <= 0:
        raise DataError(f"mean {mean} and std {std} need a number per channel, std above 0")
    return ImageData(
        name, images, labels.astype(np.int32), int(labels.max()) + 1, tuple(mean), tuple(std)
    )


def _image_data(name: str, images: np.ndarray, labels: np.ndarray) -> ImageData:
    kind = DATASETS[name]
    return ImageData(name, images, labels.astype(np.int32), 10, kind.mean, kind.std)


def _digits(split: str) -> ImageData:
    """scikit-learn's 1,797 digits: each pixel 3 x 3 times, a margin of 2, 0..16 to 0..255."""
    if split != "train":
        raise DataError(f"digits has no split {split!r}; it has 'train' alone")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits needs scikit-learn: pip install 'cdl_jax[train]'") from error
    small, labels = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(small).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = pixels.repeat(3, axis=1).repeat(3, axis=2)
    images = np.pad(large, ((0, 0), (2, 2), (2, 2)))[..., None]
    return _image_data("digits", images, np.asarray(labels))


def _from_tfds(name: str, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    folder = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = folder.expanduser()
    # Looked for first: with no network, tfds would retry its download for minutes.
    newest = max(folder.glob(f"{name}/*/dataset_info.json"), key=_numbers, default=None)
    if newest is None or not _numbers(newest):
        raise DataError(
            f"no {name} in {folder}: give --data-dir or TFDS_DATA_DIR a folder that holds it in "
            f"array_record form, or make it there with `tfds build {name} "
            f"--file_format=array_record --data_dir={folder}` where there is a network"
        )
    one = f"{name}:{newest.parent.name}"  # that of the cache's key
    return cached(newest.parent, split, lambda: _read_tfds(one, split, folder))


def _numbers(info: pathlib.Path) -> tuple[int, ...]:
    """Of the version whose folder it is; none where that is called otherwise."""
    found = _VERSION.fullmatch(info.parent.name)
    return tuple(map(int, found.groups())) if found else ()


def _read_tfds(name: str, split: str, folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    logging.getLogger("absl").setLevel(logging.ERROR)  # its advice to install OpenCV
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(f"{name} needs tensorflow-datasets: pip install 'cdl_jax[tfds]'") from error
    try:
        source: Any = tfds.data_source(name, split=split, data_dir=folder, download=False)
        features = source.dataset_info.features
        if not {"image", LABEL} <= set(features):
            raise ValueError(f"it has the features {sorted(features)}; image and label are needed")
        return _stacked(source)
    except Exception as error:  # tfds raises many kinds; whichever it is, the data are unusable
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot read {name} in {folder}: {first}") from error


def _stacked(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all records; each block's decoded rows go before the next one's come."""
    images, labels = np.empty(0), np.empty(len(source), np.int64)
    for first in range(0, len(source), _ROWS):
        rows = source.__getitems__(range(first, min(first + _ROWS, len(source))))
        if not first:
            images = np.empty((len(source), *rows[0]["image"].shape), rows[0]["image"].dtype)
        for place, row in enumerate(rows, first):
            if row["image"].shape != images.shape[1:]:
                raise ValueError(
                    f"image {place} is {list(row['image'].shape)}, the first is "
                    f"{list(images.shape[1:])}; make all of one shape"
                )
            images[place], labels[place] = row["image"], row[LABEL]
    return images, labels
