import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdl_jax.data.files import load_files
from cdl_jax.data.fingerprint import facts
from cdl_jax.data.samples import array_data, check_finite, inputs_of, narrow
from cdl_jax.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 3))
LABEL = np.arange(10) % 4


def test_numpy_files(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, label=LABEL)
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "x.npy", X)
    np.save(tmp_path / "d" / "label.npy", LABEL)
    for url in (f"numpy:{tmp_path}/d.npz", f"numpy:{tmp_path}/d"):
        data = load_files(url)
        assert (len(data), data.classes) == (10, 4)
        batch = data.batch([3, 1])
        assert np.array_equal(batch["x"], X[[3, 1]].astype(np.float32))
        assert batch["label"].tolist() == [3, 1]
        assert batch["label"].dtype == data.labels.dtype == np.int32
    assert isinstance(data.fields["x"], np.memmap)


def test_parquet_with_numeric_columns_is_a_table(tmp_path):
    columns = {"a": X[:, 0], "n": np.arange(10), "label": LABEL, "c": X[:, 1].astype(np.float32)}
    for i, rows in enumerate((slice(0, 6), slice(6, 10))):
        part = pa.table({name: x[rows] for name, x in columns.items()})
        pq.write_table(part, tmp_path / f"part-{i}.parquet")
    data = load_files(f"parquet:{tmp_path}")
    expected = np.stack([X[:, 0], np.arange(10), X[:, 1]], 1).astype(np.float32)
    assert np.array_equal(data.batch(np.arange(10))["x"], expected)
    assert data.labels.tolist() == LABEL.tolist()


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float64(), 3)])
def test_a_hugging_face_folder(tmp_path, kind):
    png = io.BytesIO()
    from PIL import Image

    pixels = RNG.integers(0, 256, (4, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(png, "PNG")
    table = pa.table({
        "x": pa.array(X.tolist(), kind),
        "grid": pa.array([[[1, 2], [3, 4]]] * 10, pa.list_(pa.list_(pa.int64()))),
        "image": pa.array([{"bytes": png.getvalue(), "path": None}] * 10),
        "weight": X[:, 0],
        "label": LABEL,
    })  # fmt: skip
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table.slice(0, 7), table.slice(7)), strict=True):
        with (
            pa.OSFile(str(tmp_path / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    batch = load_files(f"hf:{tmp_path}").batch(np.array([0, 9]))
    assert np.array_equal(batch["x"], X[[0, 9]].astype(np.float32))
    assert batch["grid"].tolist() == [[[1, 2], [3, 4]]] * 2
    assert batch["grid"].dtype == np.int32
    assert np.array_equal(batch["image"][1, ..., 0], pixels)
    assert batch["weight"].shape == (2,)


def test_what_cannot_be_read_is_said(tmp_path):
    def refused(url, words):
        with pytest.raises(DataError, match=words):
            load_files(url)

    refused(f"numpy:{tmp_path}/none", "no .*none for the data set")
    refused(f"numpy:{tmp_path}", "no .npy files")
    np.savez(tmp_path / "d.npz", x=X, label=LABEL[:5])
    refused(f"numpy:{tmp_path}/d.npz", "'x': 10, 'label': 5} samples; give one length")
    np.save(tmp_path / "x.npy", np.array(["a", "b"]))
    refused(f"numpy:{tmp_path}", "give numbers")
    np.save(tmp_path / "one.npy", X)
    refused(f"numpy:{tmp_path}/one.npy", "a single array has no labels")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "state.json").write_text("{}")
    refused(f"hf:{tmp_path}", r"give one of the splits \['train'\]")
    pq.write_table(pa.table({"x": [[1.0], [1.0, 2.0, 3.0]]}), tmp_path / "a.parquet")
    refused(f"parquet:{tmp_path}/a.parquet", "lists of several lengths")
    pq.write_table(pa.table({"x": [1.0, None]}), tmp_path / "a.parquet")
    refused(f"parquet:{tmp_path}/a.parquet", "'x' has 1 empty values")
    pq.write_table(pa.table({"x": ["a", "b"]}), tmp_path / "a.parquet")
    refused(f"parquet:{tmp_path}/a.parquet", "'x' holds string")
    pq.write_table(pa.table({"x": [[1, None], [2, 3]]}), tmp_path / "a.parquet")
    refused(f"parquet:{tmp_path}/a.parquet", "'x' has 1 empty values in its lists; fill them in")
    pq.write_table(pa.table({"x": [[[1.0], None], [[1.0], [2.0]]]}), tmp_path / "a.parquet")
    refused(f"parquet:{tmp_path}/a.parquet", "'x' has 1 empty values in its lists; fill them in")
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    refused(f"parquet:{tmp_path}/a.parquet", "cannot read parquet")
    for state in ("[]", "{}", "no JSON"):
        (tmp_path / "train" / "state.json").write_text(state)
        refused(f"hf:{tmp_path}/train", "state.json is not as save_to_disk writes it")


def _damaged(content, how):
    middle = len(content) // 2
    if how == "flipped":
        return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    return {"cut": content[:middle], "empty": b"", "other": b"no numbers at all"}[how]


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "other"])
def test_a_damaged_numpy_file_is_said_in_one_sentence(tmp_path, how):
    np.savez(tmp_path / "d.npz", x=X, label=LABEL)
    (tmp_path / "d.npz").write_bytes(_damaged((tmp_path / "d.npz").read_bytes(), how))
    with pytest.raises(DataError, match=r"^cannot read numpy:.*d.npz: ") as refused:
        load_files(f"numpy:{tmp_path}/d.npz")
    assert "pickle" not in str(refused.value)
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(DataError, match="cannot read numpy"):
        load_files(f"numpy:{tmp_path}")


def test_a_single_value_among_the_fields_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, label=LABEL, rate=np.float32(3))
    with pytest.raises(DataError, match="single values in rate; give a value for each sample"):
        load_files(f"numpy:{tmp_path}/d.npz")


def test_a_sample_that_is_not_finite_is_named(monkeypatch):
    monkeypatch.setattr("cdl_jax.data.samples._LOOK", 4 * X.itemsize * 3)  # four rows at a time
    check_finite(array_data("d", {"x": X, "label": LABEL}))
    for odd in (np.nan, np.inf, -np.inf):
        x = X.copy()
        x[9, 1] = x[5, 2] = odd
        with pytest.raises(
            DataError, match="sample 5 of d has a NaN or an infinity in x as .*; fill"
        ):
            check_finite(array_data("d", {"x": x, "label": LABEL}))


def test_what_is_infinite_in_32_bits_is_not_finite():
    x = X.copy()
    x[7, 0] = 1e300
    with pytest.raises(DataError, match=r"sample 7 of d has .* in x as float32, .* at 3.4e\+38"):
        check_finite(array_data("d", {"x": x, "label": LABEL}))


def test_numbers_are_narrowed_or_refused():
    assert narrow(np.ones(2, bool)).dtype == np.uint8
    with pytest.raises(DataError, match="from 5 to 1099511627776 do not fit int32"):
        narrow(np.array([5, 1 << 40]))
    swapped = narrow(np.array([1.5, 2], ">f4"))
    assert swapped.dtype.isnative
    assert swapped.tolist() == [1.5, 2]


def test_facts_tell_data_apart(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, label=LABEL)
    np.savez(tmp_path / "b.npz", x=X + 1, label=LABEL)
    a, b = (load_files(f"numpy:{tmp_path}/{n}.npz") for n in "ab")
    assert facts(a, 5) == facts(a, 5) != facts(b, 5)
    assert facts(a, 5)["fields"] == {"label": ["int32", []], "x": ["float32", [3]]}
    assert inputs_of(a.batch([0])).shape == (1, 3)
