"""Data sets of one's own from disk: NumPy files, parquet files, Hugging Face dataset folders.

    numpy:FILE.npz, numpy:FOLDER    one array a field; a folder's NAME.npy files are memory-mapped
    parquet:FILE, parquet:FOLDER    a folder's files in the order of their names
    hf:FOLDER                       as `datasets.Dataset.save_to_disk` writes it

A column of lists of one length, or of Hugging Face images, is a field of its own. Numeric columns
beside "label" are one field "x", float32, in the file's order, where there is no such column.
"""

import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from cdl_jax.data.samples import LABEL, ArrayData, array_data
from cdl_jax.errors import DataError


def load_files(url: str) -> ArrayData:
    """The samples at KIND:PATH.

    Raises:
      DataError: when there is nothing at the path, or what is there does not hold together.
    """
    kind, _, place = url.partition(":")
    path = pathlib.Path(place).expanduser()
    if not path.exists():
        raise DataError(f"no {path} for the data set {url}; give a file or folder that is there")
    try:
        return array_data(kind, KINDS[kind](path))
    except DataError:
        raise
    except Exception as error:  # of damaged files come many kinds: zip's, zlib's, EOF, pyarrow's
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot read {url}: {first[:200]}") from error


def _numpy(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise ValueError("there are no .npy files")
        return {p.stem: _loaded(p, mmap_mode="r") for p in files}
    with path.open("rb") as file:  # NumPy itself would leave a damaged one open
        arrays = _loaded(file)
        if isinstance(arrays, np.ndarray):
            raise ValueError("a single array has no labels; give a .npz file or a folder of .npy")
        with arrays:
            return {name: arrays[name] for name in arrays.files}


def _loaded(file: Any, **options: Any) -> Any:
    try:
        return np.load(file, allow_pickle=False, **options)
    except ValueError as error:
        if "pickle" in str(error):  # NumPy takes any bytes for a pickle, and says how to trust it
            raise ValueError("that is no array of numbers as NumPy saves them") from error
        raise


def _parquet(path: pathlib.Path) -> dict[str, np.ndarray]:
    import_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError("there are no .parquet files")
    return _fields(pa.concat_tables([pq.read_table(p) for p in files]))


def _hugging_face(path: pathlib.Path) -> dict[str, np.ndarray]:
    pa = import_pyarrow()
    state = path / "state.json"
    if not state.exists():
        inside = sorted(p.parent.name for p in path.glob("*/state.json"))
        mend = f"give one of the splits {inside}" if inside else "save_to_disk did not write it"
        raise ValueError(f"no state.json there: {mend}")
    try:
        files = [path / row["filename"] for row in json.loads(state.read_text())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("its state.json is not as save_to_disk writes it") from error
    tables = []
    for file in files:
        with pa.memory_map(str(file)) as source:
            tables.append(pa.ipc.open_stream(source).read_all())
    return _fields(pa.concat_tables(tables))


KINDS: dict[str, Callable[[pathlib.Path], dict[str, np.ndarray]]] = {
    "numpy": _numpy,
    "parquet": _parquet,
    "hf": _hugging_face,
}


def import_pyarrow() -> Any:
    """Pyarrow.

    Raises:
      DataError: when it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            "parquet and hf data sets need pyarrow: pip install 'cdl_jax[parquet]'"
        ) from error
    return pyarrow


def _fields(table: Any) -> dict[str, np.ndarray]:
    columns = {name: _column(name, table[name]) for name in table.column_names}
    flat = {n: x for n, x in columns.items() if x.ndim == 1 and n != LABEL}
    wide = {n: x for n, x in columns.items() if n not in flat}
    if set(wide) <= {LABEL} and flat:
        wide["x"] = np.stack([x.astype(np.float32) for x in flat.values()], axis=1)
        return wide
    return wide | flat


def _column(name: str, column: Any) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    compute: Any = pc  # its functions are made at import
    if column.null_count:
        raise ValueError(f"column {name!r} has {column.null_count} empty values; fill them in")
    kind = column.type
    column = column.combine_chunks()
    if isinstance(kind, pa.BaseExtensionType):  # Array2D and the like
        column, kind = column.storage, kind.storage_type
    if pa.types.is_struct(kind) and "bytes" in {kind.field(i).name for i in range(len(kind))}:
        return np.stack([_image(name, row["bytes"]) for row in column.to_pylist()])
    shape: list[int] = []
    while isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        lengths = compute.list_value_length(column).unique().to_pylist()
        if len(lengths) != 1:
            raise ValueError(f"column {name!r} has lists of several lengths; give one length")
        shape, column = [*shape, lengths[0]], column.flatten()
        if column.null_count:
            raise ValueError(
                f"column {name!r} has {column.null_count} empty values in its lists; fill them in"
            )
        kind = column.type
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"column {name!r} holds {kind}; leave out what is no number")
    return values.reshape(-1, *shape)


def _image(name: str, content: bytes | None) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images in a column need pillow: pip install 'cdl_jax[tfds]'") from error
    if content is None:
        raise ValueError(f"column {name!r} names image files; save the data set with them inside")
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels[..., None] if pixels.ndim == 2 else pixels
