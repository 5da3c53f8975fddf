import json

import numpy as np
import pytest

from cdl_jax.train import TrainConfig
from experiments import drift_cells, report
from experiments.figures import drift
from experiments.figures import results as stored

STREAM = {
    "samples": 1000, "block": 128, "correct": [128, 128, 64, 0, 32, 128, 128, 104],
    "changes": [300], "drifts": [400],
}  # fmt: skip


def write(folder, kind, seed, correct):
    settings = {"strategy": "sparse"} | ({"on_drift": "share"} if kind == "drift_aware" else {})
    header = {
        "cell": f"label_permutation-{kind}", "model": "lenet5", "seed": seed, "device": "a device",
        "programs": [{"threads": 1}], "versions": {"jax": "1"}, "initial_weights": "random",
        "settings": settings, "stream": {**STREAM, "correct": correct},
    }  # fmt: skip
    summary = {"bytes_sent": 1000, "versions": 10}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"lenet5-label_permutation-{kind}-s{seed}.jsonl"
    path.write_text(json.dumps(header) + "\n" + json.dumps({"summary": summary}) + "\n")


def test_right_answers_are_counted_in_blocks():
    lines = [
        {"position": 100 + stop, "samples": 16, "correct": 10, "drift": stop == 160}
        for stop in range(16, 301, 16)
    ]
    config = TrainConfig(dataset="digits", scenario="label_permutation", initial_samples=100)
    found = drift_cells.stream(config, lines)
    assert found["correct"] == [80, 80, 20]
    assert (found["samples"], found["drifts"]) == (288, [160])


@pytest.mark.parametrize("scenario", drift_cells.SCENARIOS)
def test_changes_are_where_the_stream_changes(scenario):
    config = TrainConfig(dataset="digits", scenario=scenario, initial_samples=400, seed=3)
    found = drift_cells.changes(config)
    mine = drift_cells.open_data(config).labels[400:]
    plain = drift_cells.open_data(TrainConfig(dataset="digits", initial_samples=400)).labels[400:]
    if scenario == "label_permutation":
        assert found == [np.flatnonzero(mine != plain)[0]]
    else:
        assert [mine[x] != mine[x - 1] for x in found] == [True] * len(found)
        assert len(found) == len(set(mine.tolist())) - 1


def test_a_cell_for_each_policy_in_each_scenario():
    names = [c.name for c in drift_cells.cells()]
    assert len(set(names)) == len(names) == 20
    assert {"label_permutation-reservoir", "class_incremental-drift_aware"} <= set(names)
    for cell in drift_cells.cells():
        TrainConfig(dataset="mnist", **cell.settings).checked()
        assert not drift_cells.BLOCK % cell.settings["trigger"]


def test_parts_of_the_stream_are_whole_blocks():
    assert drift.after(STREAM).tolist() == [False] * 3 + [True] * 5
    assert drift.soon({**STREAM, "changes": [300, 5000]}).tolist() == [False] * 3 + [True] * 5
    run = stored.Result({"stream": STREAM}, [], {})
    assert drift.accuracy(run, drift.after) == pytest.approx(100 * 392 / 616)
    assert drift.accuracy(run, drift.whole) == pytest.approx(100 * 712 / 1000)


def test_the_report_has_the_table_and_says_what_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    for seed in range(3):
        write(tmp_path / "mnist-drift", "uniform", seed, [128, 128, 64, 0, 32, 64, 64, 52])
        write(tmp_path / "mnist-drift", "drift_aware", seed, STREAM["correct"])
    assert report.main(report.Options(out=str(tmp_path / "out"))) == 0
    text = (tmp_path / "out" / "mnist-drift" / "report.md").read_text()
    assert "| proactive, uniform | 53.20 ± 0.00 | 34.42 ± 0.00 | 34.42 ± 0.00 | 29.22" in text
    assert "| **the same, and on a drift share+density** | 71.20 ± 0.00 | 63.64 ± 0.00" in text
    assert "| 1, 1; 1, 1; 1, 1 | 164 |" in text
    assert "| online, trigger 128 | not run |" in text
    picture = (tmp_path / "out" / "mnist-drift" / "drift_label_permutation.png").read_bytes()
    assert b"Seeds 0, 1, 2" in picture
