import json
import types

import pytest

from experiments import update_bytes


class Fake:
    """Measures nothing."""

    def __init__(self, name, dense_steps):
        del dense_steps
        self.data = types.SimpleNamespace(name="mnist" if name == "lenet5" else "cifar10")

    def measure(self, tx, steps):
        del tx, steps
        return {"entries": 1, "bytes": 2.0, "dense_bytes": 8, "times_less": 4.0}


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(update_bytes, "Gradients", Fake)
    monkeypatch.setattr(update_bytes, "origin", lambda dataset: f"a copy of {dataset}")
    return update_bytes.Options(
        models=("lenet5",), densities=(1e-3,), values=("int8",), results=str(tmp_path)
    )


def test_a_row_says_when_and_on_what_and_an_old_one_stays_as_it_is(options, tmp_path):
    old = {"model": "lenet5", "density": 1e-3, "scope": "global", "values": "int8", "bytes": 1.0}
    before = {"about": "old", "command": "c", "device": "an old one", "versions": {"jax": "0"}}
    path = tmp_path / "update_bytes.json"
    path.write_text(json.dumps(before | {"rows": [old]}))
    assert update_bytes.main(options) == 0
    found = json.loads(path.read_text())
    assert found.pop("rows")[1] == old
    assert found == before  # of the rows that say nothing themselves
    row = json.loads(path.read_text())["rows"][0]
    assert (row["scope"], row["bytes"], row["dense_steps"]) == ("tensor", 2.0, 40)
    assert row["data"] == "a copy of mnist"
    assert {"commit", "date", "device", "threads", "versions"} <= set(row)


def test_a_new_file_says_what_its_rows_are(options, tmp_path):
    assert update_bytes.main(options) == 0
    found = json.loads((tmp_path / "update_bytes.json").read_text())
    assert len(found["rows"]) == 2
    assert "after 40 dense steps from random weights (seed 0)" in found["about"]
