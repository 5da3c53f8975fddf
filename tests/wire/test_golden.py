"""Golden files decode for ever, and a reader written from FORMAT.md alone reads them too."""

import ast
import json
import pathlib

import numpy as np
import pytest

from cdl_jax.core import digest
from cdl_jax.wire import (
    decode_snapshot,
    decode_update,
    encode_snapshot,
    encode_update,
    numbers,
    read_header,
)
from tests.wire import make_golden, reader
from tests.wire.make_golden import FOLDER, LINEAGE, SNAPSHOT, described, signing_key, updates
from tests.wire.updates import MIXED, make_update

NAMES = sorted(path.stem for path in FOLDER.glob("*.update"))
FORMAT = pathlib.Path(numbers.__file__).parent / "FORMAT.md"


def plain(content):
    """What the reader gives, as JSON has it."""
    for section in content["sections"]:
        section["positions"] = section["positions"].tolist()
        section["values"] = section["values"].tolist()
    return content


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_file_holds_what_is_written_beside_it(name):
    blob = (FOLDER / f"{name}.update").read_bytes()
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    assert plain(reader.read(blob)) == expected
    update = decode_update(blob)
    assert described(update, expected["signature"]) == expected
    assert read_header(blob).lineage == LINEAGE
    if name != "signed":
        assert encode_update(update, lineage=LINEAGE) == blob


def test_without_the_native_codec_the_bytes_are_the_same(monkeypatch):
    monkeypatch.setattr(numbers, "_codec", None)
    for name in NAMES:
        if name != "signed":
            test_a_golden_file_holds_what_is_written_beside_it(name)


def test_the_golden_files_are_all_there():
    assert sorted(["signed", *(name for name, _ in updates())]) == NAMES


def test_the_golden_signature_is_its_keys():
    key = signing_key()
    assert f"`{key.public.hex()}`" in FORMAT.read_text().replace("\n", "")
    blob = (FOLDER / "signed.update").read_bytes()
    update = decode_update(blob, key=key.public)
    assert encode_update(update, lineage=LINEAGE, key=key) == blob


def test_the_golden_snapshot_holds_what_was_written():
    key, expected = signing_key(), make_golden.snapshot()
    found = decode_snapshot(SNAPSHOT.read_bytes(), key=key.public)
    assert (found.spec, found.version) == (expected.spec, expected.version)
    assert (found.lineage, found.digest.tolist()) == (LINEAGE, expected.digest.tolist())
    for name, values in expected.tensors.items():
        assert found.tensors[name].tobytes() == values.tobytes()
    assert encode_snapshot(found, key=key) == SNAPSHOT.read_bytes()


def forms_read(monkeypatch):
    """Kinds of groups, forms of values and of streams of numbers that the golden files hold."""
    found, depth = {"kinds": set(), "values": set(), "streams": set()}, []
    for name in ("group", "bits", "levels", "numbers"):
        inner = getattr(reader, name)

        def read(body, *arguments, name=name, inner=inner):
            form = body.data[body.at]
            if name == "group":
                found["kinds"].add(form)
            elif name == "numbers":
                one = "blocks" if form == 32 else "fixed" if form > 32 else "rice"
                found["streams"].add(("parameters" if "blocks" in depth else "numbers", one))
                depth.append(one)
            else:
                dtype = reader.DTYPES[arguments[1]] if form == 1 else None
                found["values"].add((form, dtype))
            out = inner(body, *arguments)
            if name == "numbers":
                depth.pop()
            return out

        monkeypatch.setattr(reader, name, read)
    for name in NAMES:
        reader.read((FOLDER / f"{name}.update").read_bytes())
    return found


def test_the_golden_files_hold_every_form(monkeypatch):
    found = forms_read(monkeypatch)
    flags = {32 * i for i in range(8)}  # shared, dense, levels and all their combinations
    assert {kind & 0b1110_0000 for kind in found["kinds"]} == flags
    assert {kind for kind in found["kinds"] if kind < 32} == set(range(len(reader.DTYPES)))
    split = {(1, name) for name in reader.FLOATS}
    assert found["values"] == {(0, None), (2, None), (3, None)} | split
    assert found["streams"] == {
        ("numbers", "rice"), ("numbers", "blocks"), ("numbers", "fixed"),
        ("parameters", "rice"), ("parameters", "fixed"),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_the_reader_reads_fresh_updates(seed):
    update = make_update(MIXED, seed=100 + seed)
    blob = encode_update(update, lineage=LINEAGE)
    assert plain(reader.read(blob)) == described(decode_update(blob))
    assert described(decode_update(blob)) == described(update)


def test_the_reader_is_short_and_imports_numpy_alone():
    text = pathlib.Path(reader.__file__).read_text()
    assert len(text.splitlines()) <= 150
    imports = [x for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(x) for x in imports] == ["import struct", "import numpy as np"]


def test_the_formats_digest_vectors_hold():
    rows = [line.split("|")[1:-1] for line in FORMAT.read_text().splitlines() if "| `" in line]
    vectors = [[cell.strip(" `") for cell in row] for row in rows if len(row) == 4]
    assert len(vectors) >= 5
    for path, dtype, raw, expected in vectors:
        values = np.frombuffer(bytes.fromhex(raw), f"u{np.dtype(dtype).itemsize}").view(dtype)
        assert digest.to_hex(digest.numpy_digest({path: values})) == expected
