import dataclasses
import json
import pathlib

import jax
import pytest

from experiments import cells, grid

SHAPE = {"initial_samples": 128, "epochs": 1, "limit": 96, "batch_size": 32}
OPTIONS = grid.Options(dataset="digits", profile="quick", models=("lenet5",), log_to="runs")


SPARSE, DENSE = "lenet5-top_k-0.01-tensor-float32-s0.jsonl", "lenet5-proactive-8-s0.jsonl"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder in which the grid on digits, of two cells, has been run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(cells.PROFILES, ("digits", "quick"), SHAPE)
        patch.setattr(grid, "cells", lambda dataset: [cells.sparse(0.01), cells.proactive(8)])
        with jax.numpy_dtype_promotion("standard"):
            assert grid.main(OPTIONS) == 0
    return folder


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """The grid on digits: one cell, a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(cells.PROFILES, ("digits", "quick"), SHAPE)
    monkeypatch.setattr(grid, "cells", lambda dataset: [cells.sparse(0.01)])
    with jax.numpy_dtype_promotion("standard"):
        yield


def results(folder="."):
    return sorted(p.name for p in pathlib.Path(folder, "experiments/results").rglob("*.jsonl"))


def read(name, folder="."):
    path = pathlib.Path(folder, "experiments/results/digits-quick", name)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_cell_leaves_what_it_was_its_curve_and_its_summary(whole):
    assert results(whole) == [DENSE, SPARSE]
    header, *points, last = read(SPARSE, whole)
    assert header["seed"] == 0
    assert header["settings"]["density"] == 0.01
    assert header["programs"][0]["jax"] == jax.__version__
    assert {"device", "versions", "command", "initial_weights"} <= set(header)
    assert [p["version"] for p in points] == list(range(1, 13))
    summary = last["summary"]
    assert summary["versions"] == 12
    assert summary["bytes_sent"] == pytest.approx(sum(p["bytes"] for p in points))
    assert 100 < summary["bytes_sent"] / 12 < summary["dense_bytes"] / 10
    dense = read(DENSE, whole)[-1]["summary"]
    assert dense["bytes_sent"] == 12 * dense["dense_bytes"]  # a whole model each
    assert not list(pathlib.Path(whole, "runs").glob("digits-quick/lenet5-*"))


def test_a_finished_cell_is_not_run_again(whole, monkeypatch):
    monkeypatch.chdir(whole)
    monkeypatch.setattr(grid, "run", lambda config: pytest.fail("it ran again"))
    assert grid.main(OPTIONS) == 0


def test_a_stopped_cell_goes_on_and_another_program_may_do_so(whole, monkeypatch):
    expected, run = read(SPARSE, whole), grid.run

    def stopped(config):
        return dataclasses.replace(run(dataclasses.replace(config, limit=40)), interrupted=True)

    with monkeypatch.context() as patch:
        patch.setattr(grid, "run", stopped)
        assert grid.main(OPTIONS) == 130
    assert results() == []
    elsewhere = {**grid.program(), "device": "another one"}
    monkeypatch.setattr(grid, "program", lambda: elsewhere)
    monkeypatch.setattr("cdl_jax.train.job.program", lambda cluster=None: elsewhere)
    assert grid.main(OPTIONS) == 0
    again = read(SPARSE)
    assert [p["device"] for p in again[0]["programs"]] == [expected[0]["programs"][0]["device"],
                                                           "another one"]  # fmt: skip
    same = ("digest", "accuracy", "versions", "samples")
    assert [again[-1]["summary"][k] for k in same] == [expected[-1]["summary"][k] for k in same]


def test_a_cell_that_another_process_runs_is_left_to_it(monkeypatch):
    import fcntl

    task = next(grid.tasks(OPTIONS))
    folder = pathlib.Path("runs/digits-quick") / task.name
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(grid, "run", lambda config: pytest.fail("it ran"))
        assert grid.run_task(task, OPTIONS)
    assert results() == []


def test_the_paper_s_cells_are_there_and_have_names_of_their_own():
    for dataset in ("mnist", "cifar10"):
        names = [c.name for c in cells.cells(dataset)]
        assert len(set(names)) == len(names)
        assert {"full", "online-128", "proactive-64", "top_k-1e-05-global-float32",
                "random_k-0.0001-tensor-float32", "top_k-0.001-tensor-float32-before",
                "top_k-0.0001-global-int8"} <= set(names)  # fmt: skip


def test_points_average_what_lies_between_them():
    lines = [
        {"position": 8 * v, "version": v, "accuracy": 0.5, "correct": v % 2 * 8, "samples": 8,
         "frozen_accuracy": 0.1, "entries": v, "bytes": 10 * v}
        for v in range(1, 201)
    ]  # fmt: skip
    points = grid.curve(lines)
    assert len(points) == 50
    assert points[0] == {
        "position": 32, "version": 4, "accuracy": 0.5, "accuracy_here": 0.5,
        "frozen_accuracy": 0.1, "entries": 2.5, "bytes": 25.0,
    }  # fmt: skip
