import json

import pytest

from experiments import report
from experiments.figures import results as stored
from experiments.figures import values
from experiments.figures.results import Result, interval, load, paired, plus_minus


def write(folder, cell, seed, accuracy, bytes_an_update=100.0, entries=60):
    header = {
        "cell": cell, "model": "lenet5", "seed": seed, "device": "a device",
        "programs": [{"threads": 2}], "versions": {"jax": "1"}, "initial_weights": "random",
        "settings": {"trigger": 32},
    }  # fmt: skip
    points = [
        {"position": 10_000 + 1000 * i, "version": 125 * i, "accuracy": accuracy,
         "accuracy_here": accuracy, "frozen_accuracy": 0.5, "entries": entries, "bytes": 1}
        for i in range(1, 4)
    ]  # fmt: skip
    summary = {
        "accuracy": accuracy, "frozen_accuracy": 0.5, "versions": 10,
        "bytes_sent": 10 * bytes_an_update, "dense_bytes": 246_824,
    }  # fmt: skip
    rows = [header, *points, {"summary": summary}]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"lenet5-{cell}-s{seed}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    for seed, dense, sparse in [(0, 0.98, 0.981), (1, 0.97, 0.972), (2, 0.96, 0.963)]:
        write(tmp_path / "mnist-full", "proactive-8", seed, dense, 246_824)
        write(tmp_path / "mnist-full", "top_k-0.001-tensor-float32", seed, sparse, 432)
        write(tmp_path / "mnist-full", "top_k-0.001-tensor-float32-before", seed, 0.9, 20_000)
    return tmp_path


def test_differences_are_paired_by_seed(folder):
    results = load("mnist", "full", "lenet5")
    runs = results.get("top_k-0.001-tensor-float32")
    assert paired(runs, results.get("proactive-8")) == pytest.approx([0.1, 0.2, 0.3])
    assert paired(runs[1:], results.get("proactive-8")[:2]) == pytest.approx([0.2])
    # By hand: deviation 0.1, over the root of 3, times 4.303.
    assert interval([0.1, 0.2, 0.3]) == (pytest.approx(0.2), pytest.approx(0.24843, abs=1e-4))
    assert plus_minus([0.5]) == "0.50 (1 seed)"
    assert plus_minus([]) == "not run"


def test_the_report_says_what_was_run_and_what_was_not(folder):
    assert report.main(report.Options(out=str(folder / "out"))) == 0
    text = (folder / "out" / "mnist-full-lenet5" / "report.md").read_text()
    assert "| top-k 1e-3, per tensor | 97.20 ± 2.24 | 0.200 ± 0.248 | 432 | 571 |" in text
    assert "| full retraining | not run | - | - | - |" in text
    assert "steps every 32 samples" in text
    assert "| 1e-3 | 90.00 ± 0.00 | 20,000 | 0.1 | top-k 1e-3, per tensor | 432 | 7.200" in text
    assert "Seeds 0, 1, 2; initial weights: random" in text
    for name in ("accuracy_over_stream", "accuracy_bytes", "changed_parameters"):
        picture = (folder / "out" / "mnist-full-lenet5" / f"{name}.png").read_bytes()
        assert b"Seeds 0, 1, 2" in picture  # its caption travels with it
    assert not (folder / "out" / "cifar10-full-resnet18").exists()


def test_a_form_is_compared_with_float32_on_the_same_seeds(folder):
    write(folder / "mnist-full", "top_k-0.001-tensor-int8", 1, 0.971, 216)
    row = values.draw(load("mnist", "full", "lenet5"), folder, "").splitlines()
    assert "| 1e-3 | tensor | int8 | 97.10 (1 seed) | -0.100 (1 seed) | 216 | 1,143 |" in row


def test_an_unknown_figure_is_named(folder, capsys):
    assert report.main(report.Options(only=("pie",), out=str(folder))) == 2
    assert "no figure 'pie'; give one of strategies" in capsys.readouterr().err


def test_bytes_are_counted_against_the_model():
    run = Result({}, [], {"bytes_sent": 500, "versions": 5, "dense_bytes": 40_000})
    assert (run.bytes_an_update, run.times_less) == (100, 400)
