import dataclasses
import importlib.util
import json
import pathlib
import signal
import zipfile

import jax
import numpy as np
import pytest
import rich

from cdl_jax.train.records import Records
from experiments import example_stream, flights

COLUMNS = (
    "year,month,day,sched_dep_time,arr_delay,carrier,flight,tailnum,origin,dest,distance,hour,"
    "minute,time_hour"
)
ROWS = (
    "2013,10,1,630,16,UA,7,N1,EWR,IAH,1400,6,30,2013-10-01T10:00:00Z",
    "2013,1,1,600,15,UA,7,N2,LGA,IAH,1416,6,0,2013-01-01T11:00:00Z",
    "2013,1,1,559,-3,AA,7,N1,JFK,MIA,1089,5,59,2013-01-01T10:00:00Z",
    "2013,1,1,500,NA,AA,9,NA,JFK,MIA,1089,5,0,2013-01-01T10:00:00Z",
)


def archive(path, rows):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("flights.csv", "\n".join((COLUMNS, *rows)) + "\n")
    return path


def many(count):
    """A flight a minute: one carrier's are late."""
    for i in range(count):
        carrier, delay = [("UA", 60), ("AA", 0), ("DL", 5)][i * i % 3 if i % 5 else 2]
        hour, minute = 5 + i // 60, i % 60
        yield (
            f"2013,1,1,{hour}{minute:02},{delay},{carrier},{i % 7},N{i % 11},EWR,IAH,1400,{hour},"
            f"{minute},2013-01-01T{hour + 5:02}:00:00Z"
        )


@pytest.fixture(autouse=True, scope="module")
def _promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A small stream."""
    folder = tmp_path_factory.mktemp("example")
    return example_stream.Options(
        file=str(archive(folder / "flights.zip", many(500))),
        folder=str(folder / "run"),
        initial_samples=200,
        label_delay=40,
        trigger=20,
        pace=1000.0,
        out=str(folder / "out"),
    )


@pytest.fixture(scope="module")
def whole(options):
    """The result of a run that nothing stopped."""
    assert example_stream.main(options) == 0
    return result(options)


def result(options):
    return json.loads((pathlib.Path(options.out) / "example_stream.json").read_text())


def test_flights_that_arrived_come_in_the_order_of_departure(tmp_path):
    fields = flights.load(archive(tmp_path / "flights.zip", ROWS))
    assert fields["label"].tolist() == [0, 0, 1]  # late is more than 15 minutes
    np.testing.assert_allclose(fields["number"][:, 0], [1.089, 1.416, 1.4], rtol=1e-6)
    np.testing.assert_allclose(fields["number"][1, 1:], [1, 0], atol=1e-6)  # six o'clock
    same = fields["category"][0] == fields["category"][2]
    assert same.tolist() == [False, False, False, True, False, False, True]  # plane, Tuesday
    assert fields["category"][1, 0] == flights.bucket("carrier", "UA")
    assert 0 <= fields["category"].min() <= fields["category"].max() < flights.BUCKETS


def test_the_example_ends_with_scores_bytes_and_freshness(whole, capsys):
    assert whole["flights"] == 300
    assert "--trigger 20" in whole["command"]
    scores, fresh = whole["scores"], whole["created to served, ms"]
    assert set(scores) == {"late share alone", "frozen", "online", "proactive", "sparse"}
    assert scores["proactive"]["loss"] < scores["frozen"]["loss"]
    assert scores["sparse"]["bytes an update"] < scores["online"]["bytes an update"] / 50
    assert 0 < fresh["median"] <= fresh["p99"]
    rich.print(example_stream.table(whole))
    assert f"{scores['sparse']['loss']:.4f}" in capsys.readouterr().out


def test_interrupted_it_goes_on_and_finished_it_begins_anew(
    options, whole, tmp_path, monkeypatch, capsys
):
    line = Records.line

    def interrupted(self, record):
        line(self, record)
        if record["version"] == 5 and self.folder.name == "sparse":
            signal.raise_signal(signal.SIGINT)

    options = dataclasses.replace(options, folder=str(tmp_path / "run"), out=str(tmp_path / "out"))
    monkeypatch.setattr(example_stream, "DENSE", ("frozen",))
    with monkeypatch.context() as patch:
        patch.setattr(Records, "line", interrupted)
        assert example_stream.main(options) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert example_stream.main(options) == 0
    resumed = result(options)
    assert resumed["scores"]["sparse"] == whole["scores"]["sparse"]
    assert resumed["created to served, ms"]["of"] <= 10
    assert example_stream.main(dataclasses.replace(options, trigger=0)) == 1
    assert not (tmp_path / "run" / "sparse").exists()


def test_what_cannot_be_is_one_sentence(options, tmp_path, capsys):
    wrong = dataclasses.replace(options, folder=str(tmp_path), trigger=0)
    assert example_stream.main(wrong) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("example_stream: trigger is 0")


@pytest.mark.parametrize("rows", [None, (), ("2013,1",)])
def test_another_file_is_one_sentence(tmp_path, rows, capsys):
    path = tmp_path / "flights.zip"
    path.write_text("no archive") if rows is None else archive(path, rows)
    options = example_stream.Options(folder=str(tmp_path / "run"), file=str(path))
    assert example_stream.main(options) == 1
    assert f"cannot read flights from {path}" in capsys.readouterr().err.splitlines()[-1]


def test_without_the_package_it_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flights, "PACKAGE", "no-such-package")
    assert example_stream.main(example_stream.Options(folder=str(tmp_path))) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("in the package no-such-package: pip install 'cdl_jax[example]'")


@pytest.mark.skipif(importlib.util.find_spec(flights.PACKAGE) is None, reason="no flights here")
def test_the_package_has_the_year():
    label = flights.load()["label"]
    assert len(label) == 327_346
    assert round(float(label[-27_020:].mean()), 3) == 0.326  # December
