import dataclasses
import json
import pathlib
import shlex

import jax
import numpy as np
import pytest
import safetensors.numpy
import tyro

from cdl_jax.data import load
from cdl_jax.errors import DataError
from cdl_jax.train import baselines, loop
from experiments import cells, grid, grid_files

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


def summary_of(folder, name=SPARSE):
    return read(name, folder)[-1]["summary"]


def test_every_cell_leaves_what_it_was_its_curve_and_its_summary(whole):
    assert results(whole) == [DENSE, SPARSE]
    header, *points, last = read(SPARSE, whole)
    assert header["seed"] == 0
    assert header["settings"]["density"] == 0.01
    assert header["programs"][0]["jax"] == jax.__version__
    assert {"device", "versions", "command", "initial_weights", "date"} <= set(header)
    (life,) = header["lives"]
    assert life["trained_the_initial_model"]
    assert life["commit"] == header["commit"]
    assert not read(DENSE, whole)[0]["lives"][0]["trained_the_initial_model"]  # it was there
    assert header["data"].startswith("digits, a copy of SHA-256 ")
    assert header["wall_seconds"] > summary_of(whole)["seconds"] > 0  # the initial training, too
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
    elsewhere = {**grid_files.program(), "device": "another one"}
    monkeypatch.setattr(grid_files, "program", lambda: elsewhere)
    monkeypatch.setattr("cdl_jax.train.job.program", lambda *_: elsewhere)
    assert grid.main(OPTIONS) == 0
    again = read(SPARSE)
    assert [x["trained_the_initial_model"] for x in again[0]["lives"]] == [True, False]
    assert again[0]["wall_seconds"] == round(sum(x["wall_seconds"] for x in again[0]["lives"]), 1)
    assert [p["device"] for p in again[0]["programs"]] == [expected[0]["programs"][0]["device"],
                                                           "another one"]  # fmt: skip
    same = ("digest", "accuracy", "versions", "samples")
    assert [again[-1]["summary"][k] for k in same] == [expected[-1]["summary"][k] for k in same]


def test_a_cell_that_another_process_runs_is_left_to_it(monkeypatch):
    import fcntl

    task = next(grid.tasks(OPTIONS))
    folder = pathlib.Path("runs/digits-quick") / task.name
    folder.mkdir(parents=True)
    with (folder / "cell.lock").open("w") as lock:
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
    points = grid_files.curve(lines)
    assert len(points) == 50
    assert points[0] == {
        "position": 32, "version": 4, "accuracy": 0.5, "accuracy_here": 0.5,
        "frozen_accuracy": 0.1, "entries": 2.5, "bytes": 25.0,
    }  # fmt: skip


def test_updates_are_signed_and_the_file_says_so(whole, tmp_path, monkeypatch):
    assert [read(name, whole)[0]["signed"] for name in (SPARSE, DENSE)] == [True, False]
    monkeypatch.setattr(grid, "signing", lambda: pytest.fail("a key"))  # not asked for, then
    settings = {**SHAPE, **cells.sparse(0.01).settings, "dataset": "digits", "log": "log"}
    plain = grid.run(grid.TrainConfig(**settings, digest_every=0).checked())
    assert summary_of(whole)["bytes_sent"] - plain.bytes_sent == 64 * plain.versions


def test_the_command_names_all_that_makes_the_cell(tmp_path):
    weights = grid_files.Weights("w.safetensors", "ab" * 32)
    task = grid_files.Task("mnist", "full", "lenet5", cells.proactive(8), 2, weights)
    words = shlex.split(task.command)
    assert words[:3] == ["python", "-m", "experiments.grid"]
    options = tyro.cli(grid.Options, args=words[3:])
    assert (options.seeds, options.init_weights) == (3, "w.safetensors")
    assert task.result.parent.name == "mnist-full-abababab"


def names(only, profile="full"):
    options = grid.Options(dataset="mnist", profile=profile, only=only, seeds=1)
    return [t.cell.name for t in grid.tasks(options)]


@pytest.mark.usefixtures("_real_cells")
def test_a_whole_name_is_one_cell_and_a_beginning_is_many(capsys):
    assert names(("proactive-8",)) == ["proactive-8"]
    assert names(("proactive-3", "qsgd-16")) == ["proactive-32", "qsgd-16"]
    assert {"proactive-8", "proactive-8-changed"} < set(names(("proactive",)))
    assert names(("top_k-0.001-tensor-int2",), "quick") == ["top_k-0.001-tensor-int2"]
    assert names(("top_k-0.001-tensor-int",), "quick") == []
    only = ("proactive", "top_k-0.001-tensor-int")
    assert grid.main(grid.Options(profile="quick", only=only)) == 2
    said = capsys.readouterr().err
    assert "--only top_k-0.001-tensor-int begins no cell of the quick profile; give one's" in said
    assert grid.main(grid.Options(only=("proactive-9",))) == 2
    assert "--only proactive-9 is the beginning of no cell; the" in capsys.readouterr().err


@pytest.fixture
def _real_cells(monkeypatch):
    monkeypatch.setattr(grid, "cells", cells.cells)


def stop_a_cell(monkeypatch):
    """Leaves the cell under way, as Ctrl-C does."""
    run = grid.run
    with monkeypatch.context() as patch:
        patch.setattr(grid, "run", lambda c: dataclasses.replace(run(c), interrupted=True))
        assert grid.main(OPTIONS) == 130


def test_a_cell_goes_on_only_as_it_was_begun(monkeypatch, capsys):
    stop_a_cell(monkeypatch)
    monkeypatch.setitem(cells.PROFILES, ("digits", "quick"), {**SHAPE, "epochs": 2})
    assert grid.main(OPTIONS) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "was begun with other settings (epochs is 2 here, 1 there); go on as it" in said
    assert results() == []


def test_a_trial_leaves_what_is_under_way_alone(monkeypatch):
    stop_a_cell(monkeypatch)
    under_way = pathlib.Path("runs/digits-quick") / SPARSE.removesuffix(".jsonl")
    before = (under_way / "metrics.jsonl").read_bytes()
    assert grid.main(dataclasses.replace(OPTIONS, limit=16)) == 0
    assert (under_way / "metrics.jsonl").read_bytes() == before
    assert results() == []


def test_other_initial_weights_have_results_of_their_own(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(whole)
    missing = dataclasses.replace(OPTIONS, init_weights="none.safetensors")
    assert grid.main(missing) == 2  # though the results of random weights are there
    assert "none.safetensors cannot be read: No such file" in capsys.readouterr().err
    shapes = {"conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 400), "fc2": (84, 120),
              "fc3": (10, 84)}  # fmt: skip
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = rng.normal(0, 0.1, shape).astype("f4")
        tensors[f"{name}.bias"] = np.zeros(shape[0], "f4")
    file = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(tensors, file)
    monkeypatch.chdir(tmp_path)
    assert grid.main(dataclasses.replace(OPTIONS, init_weights=str(file))) == 0
    weights = grid_files.Weights.of(str(file))
    path = pathlib.Path(f"experiments/results/digits-quick{weights.suffix}", SPARSE)
    header = json.loads(path.read_text().splitlines()[0])
    assert header["initial_weights"] == f"w.safetensors, {weights.digest}"
    assert f"--init-weights {file}" in header["command"]


def test_a_killed_full_retraining_goes_on_behind_its_last_version(monkeypatch):
    taken, step = [], baselines.Retraining.step

    def counted(self, state, batch):
        taken.append(len(jax.tree.leaves(batch)[0]))
        return step(self, state, batch)

    class KilledError(BaseException):
        pass

    finish = loop.ContinuousTrainer._finish

    def killed(self, *rest):
        finish(self, *rest)
        if self.summary.versions == 3:
            raise KilledError

    monkeypatch.setattr(grid, "cells", lambda dataset: [cells.full_retraining()])
    monkeypatch.setitem(cells.PROFILES, ("digits", "quick"), {**SHAPE, "limit": 5 * 128})
    monkeypatch.setattr(baselines.Retraining, "step", counted)
    with monkeypatch.context() as patch:
        patch.setattr(loop.ContinuousTrainer, "_finish", killed)
        with pytest.raises(KilledError):
            grid.main(OPTIONS)
    before = len(taken)
    assert grid.main(OPTIONS) == 0
    assert len(taken) - before <= 3  # of 5
    header, *_, last = read("lenet5-full-s0.jsonl")
    assert (len(header["lives"]), last["summary"]["versions"]) == (2, 5)


def test_of_a_life_that_was_killed_nobody_knows_the_seconds(monkeypatch):
    task = next(grid.tasks(OPTIONS))
    folder = pathlib.Path("runs/digits-quick") / task.name
    folder.mkdir(parents=True)
    file = folder / "begun.json"
    with grid_files.life(task, folder, folder):
        left = file.read_text()
    file.write_text(left)
    assert grid.main(OPTIONS) == 0
    header = read(SPARSE)[0]
    assert (len(header["lives"]), header["wall_seconds"]) == (2, None)


def test_a_run_that_was_begun_before_lives_were_noted_goes_on():
    task = next(grid.tasks(OPTIONS))
    folder = pathlib.Path("runs")
    folder.mkdir()
    with grid_files.life(task, folder, folder):
        pass
    file = folder / "begun.json"
    facts = json.loads(file.read_text())["with"]
    file.write_text(json.dumps({"with": facts, "commits": ["abc"]}))
    with grid_files.life(task, folder, folder) as lives:
        assert (len(lives), lives[0]) == (2, {"commit": "abc", "wall_seconds": None})


@pytest.mark.usefixtures("_real_cells")
def test_a_cell_of_the_quick_profile_as_it_is(monkeypatch):
    try:
        load("mnist", split="test")
    except DataError as error:
        pytest.skip(f"no MNIST here: {error}")
    summaries, run = [], grid.run
    monkeypatch.setattr(grid, "run", lambda config: summaries.append(run(config)) or summaries[0])
    only = ("top_k-0.001-tensor-float32",)
    options = grid.Options(profile="quick", only=only, limit=160, log_to="runs")
    assert grid.main(options) == 0
    (found,) = summaries
    assert (found.versions, found.samples) == (20, 160)
    assert found.accuracy > 0.8  # five epochs on 2,000 samples
    assert 400 < found.bytes_sent / found.versions < 600  # 67 entries, signed
    assert results() == []
