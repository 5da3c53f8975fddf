"""Samples of a stream, kept on disk as they come, so that they can be drawn again.

    FOLDER/about.json               source, and dtype and shape of each field
    FOLDER/000000004096/FIELD.bin   rows from that position on, as many as a segment has

A row is there once every field has it; what a kill cut short is cut off. Names of fields come from
outside, and only those that are plain file names are taken. Whole segments that nothing will ask
for go (`forget`); rows of theirs that are still wanted stay in memory. One thread may append while
another reads and forgets.
"""

import json
import pathlib
import re
import shutil
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cdl_jax.data.samples import narrow
from cdl_jax.errors import DataError

_SEGMENT_BYTES, _SEGMENT_ROWS = 1 << 24, 4096
ID = "_id"  # uint8[n], the letters by which a source finds a sample of its own
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")

Row = dict[str, np.ndarray]


class Spool:
    """A growing store of rows of one form.

    Args:
      folder: where the rows are; what an earlier life left is found again.
      source: name of where they come from.
      rows: of a segment; by default up to 4096, in 16 MB.

    Attributes:
      stop: rows so far; positions count from 0, forgotten ones included.

    Raises:
      DataError: when the folder holds another source's samples.
    """

    def __init__(self, folder: pathlib.Path, source: str, *, rows: int | None = None):
        self._folder, self._source, self._rows = folder, source, rows
        self._fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.stop, self._lock = 0, threading.Lock()
        self._kept: dict[int, Row] = {}
        self._full: dict[int, Row] = {}  # segments by their first position
        self._open: Row = {}  # the segment that grows
        self._files: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "about.json").exists():
            self._find()

    @property
    def fields(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of one row, by field."""
        return self._fields

    def append(self, sample: Mapping[str, Any]) -> None:
        """Adds a row; the first one says of which form all are.

        Raises:
          DataError: for a row of another form, or of one that cannot be; it is not kept.
        """
        row = self._narrowed({name: np.asarray(x) for name, x in sample.items()})
        form = {name: (x.dtype.name, x.shape) for name, x in sorted(row.items())}
        if not self._fields:
            self._check(row)
            self._begin(form)
        if form != self._fields:
            raise DataError(
                f"{self.next_one(row)} has {_words(form)}, the first one had "
                f"{_words(self._fields)}; give samples of one form"
            )
        with self._lock:
            self._add(row)

    def next_one(self, row: Mapping[str, np.ndarray]) -> str:
        """What to call a row that is not kept: by its id in the source, or by its position."""
        own = row.get(ID)
        if own is not None and own.dtype == np.uint8 and own.ndim:  # else an iterator's own field
            name = own.tobytes().decode(errors="replace").strip()
            return f"entry {name} of {self._source}"
        return f"sample {self.stop} of {self._source}"

    def _add(self, row: Row) -> None:
        at = self.stop % self._segment
        if not self._files:
            self._start_segment()
        for name, x in row.items():
            self._open[name][at] = x
            self._files[name].write(np.ascontiguousarray(x).tobytes())
        self.stop += 1
        if at + 1 == self._segment:
            self._close_segment()

    def batch(self, index: Any) -> dict[str, np.ndarray]:
        """The rows at the given positions."""
        with self._lock:
            return self._rows_at(np.asarray(index, np.int64))

    def _rows_at(self, index: np.ndarray) -> Row:
        if len(index) and index.max() >= self.stop:  # the open segment has zeros there
            raise DataError(f"sample {index.max()} of {self._source} has not come yet")
        out = {n: np.empty((len(index), *shape), d) for n, (d, shape) in self._fields.items()}
        for first in np.unique(index // self._segment * self._segment).tolist():
            here = (index >= first) & (index < first + self._segment)
            if first not in self._full and first != self.stop // self._segment * self._segment:
                self._from_memory(index, np.flatnonzero(here), out)
                continue
            rows = self._full.get(first, self._open)
            for name in out:
                out[name][here] = rows[name][index[here] - first]
        return out

    def forget(self, before: int, wanted: Iterable[int] = (), *, start: int = 0) -> None:
        """Lets the segments of [start, before) go, but for the rows at the wanted positions."""
        with self._lock:
            gone = self._let_go(before, set(map(int, wanted)), start)
        for first in gone:
            # Under another name at once: half removed it would look like the open segment.
            shutil.rmtree(self._place(first).rename(self._folder / f"gone-{first}"))

    def _let_go(self, before: int, wanted: set[int], start: int) -> list[int]:
        """The segments that nothing is read from any more; their wanted rows move to memory."""
        before = min(before, self.stop - 1)  # the newest row says to a later life where they end
        gone = sorted(f for f in self._full if start <= f and f + self._segment <= before)
        moved = [p for p in wanted if p // self._segment * self._segment in gone]
        rows = self._rows_at(np.array(moved, np.int64))
        self._kept |= {p: {n: x[i] for n, x in rows.items()} for i, p in enumerate(moved)}
        self._kept = {p: row for p, row in self._kept.items() if p in wanted}
        for first in gone:
            del self._full[first]
        return gone

    def restore(self, positions: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Takes rows back that were forgotten on disk, as a checkpoint holds them."""
        with self._lock:
            for i, position in enumerate(positions.tolist()):
                if position // self._segment * self._segment not in self._full:
                    self._kept[position] = {name: x[i] for name, x in rows.items()}

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    @property
    def _segment(self) -> int:
        if self._rows is None:
            size = sum(np.dtype(d).itemsize * int(np.prod(s)) for d, s in self._fields.values())
            self._rows = max(1, min(_SEGMENT_ROWS, _SEGMENT_BYTES // max(1, size)))
        return self._rows

    def _narrowed(self, row: Row) -> Row:
        out = {}
        for name, value in row.items():
            try:
                out[name] = self._like_others(name, value)
            except DataError as error:
                raise DataError(f"{self.next_one(row)}, field {name}: {error}") from error
        return out

    def _like_others(self, name: str, value: np.ndarray) -> np.ndarray:
        value, (dtype, _) = narrow(value), self._fields.get(name, ("", ()))
        return value.astype(dtype) if dtype[:1] == "f" and value.dtype.kind in "iu" else value

    def _from_memory(self, index: np.ndarray, places: np.ndarray, out: Row) -> None:
        for i in places.tolist():
            row = self._kept.get(int(index[i]))
            if row is None:
                raise DataError(f"sample {index[i]} of {self._source} is not kept any more")
            for name, x in row.items():
                out[name][i] = x

    def _check(self, row: Row) -> None:
        """Whether rows of this form can be kept, found again, and trained on."""
        which = f"{self.next_one(row)} has"
        for name, x in row.items():
            if not _NAME.fullmatch(name):
                raise DataError(
                    f"{which} a field {name[:120]!r}; give names of up to 100 letters, digits, _, "
                    "- and ., not first a point"
                )
            if x.dtype.kind not in "biuf":
                raise DataError(f"{which} {x.dtype} in {name}; give numbers, or leave it out")
            if not x.size:
                raise DataError(f"{which} nothing in {name}; give at least one number")
        if all(name.startswith("_") for name in row):
            raise DataError(f"{which} no field; give one at least, such as x")

    def _begin(self, form: dict[str, Any]) -> None:
        self._fields = form
        about = {"source": self._source, "fields": form, "rows": self._segment}
        draft = self._folder / "about.draft"
        draft.write_text(json.dumps(about, indent=1) + "\n")
        draft.rename(self._folder / "about.json")

    def _find(self) -> None:
        about = json.loads((self._folder / "about.json").read_text())
        if about["source"] != self._source:
            raise DataError(
                f"{self._folder} holds samples of {about['source']}, not of {self._source}; give "
                "a new --run folder"
            )
        self._rows = about["rows"]
        self._fields = {n: (d, tuple(shape)) for n, (d, shape) in about["fields"].items()}
        for half_removed in self._folder.glob("gone-*"):
            shutil.rmtree(half_removed)
        for first in sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit()):
            count = min(self._size(first, name) for name in self._fields)
            self.stop = first + count
            if count == self._segment:
                self._full[first] = {name: self._mapped(first, name) for name in self._fields}
            else:
                self._reopen(first, count)

    def _reopen(self, first: int, count: int) -> None:
        self._start_segment()
        for name, (dtype, shape) in self._fields.items():
            size = count * np.dtype(dtype).itemsize * int(np.prod(shape))
            self._files[name].truncate(size)
            content = self._path(first, name).read_bytes()[:size]
            self._open[name][:count] = np.frombuffer(content, dtype).reshape(count, *shape)

    def _start_segment(self) -> None:
        first = self.stop // self._segment * self._segment
        self._place(first).mkdir(exist_ok=True)
        self._open = {n: np.zeros((self._segment, *s), d) for n, (d, s) in self._fields.items()}
        self._files = {n: self._path(first, n).open("ab", buffering=0) for n in self._fields}

    def _close_segment(self) -> None:
        first = self.stop - self._segment
        self.close()
        self._full[first] = {name: self._mapped(first, name) for name in self._fields}
        self._files = {}

    def _mapped(self, first: int, name: str) -> np.ndarray:
        dtype, shape = self._fields[name]
        return np.memmap(self._path(first, name), dtype, "r", shape=(self._segment, *shape))

    def _size(self, first: int, name: str) -> int:
        dtype, shape = self._fields[name]
        path = self._path(first, name)
        row = np.dtype(dtype).itemsize * int(np.prod(shape))
        return path.stat().st_size // row if path.exists() else 0

    def _place(self, first: int) -> pathlib.Path:
        return self._folder / f"{first:012d}"

    def _path(self, first: int, name: str) -> pathlib.Path:
        return self._place(first) / f"{name}.bin"


def _words(form: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in form.items())
