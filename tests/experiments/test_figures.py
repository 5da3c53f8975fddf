import json

import pytest

from experiments import report
from experiments.figures import (
    accuracy_over_stream,
    accuracy_time,
    order,
    strategies,
    update_bytes,
    values,
)
from experiments.figures import results as stored
from experiments.figures.results import Result, interval, load, paired, plus_minus


def write(folder, cell, seed, accuracy, bytes_an_update=100.0, entries=60, **more):
    header = {
        "cell": cell, "model": "lenet5", "seed": seed, "device": "a device",
        "programs": [{"threads": 2}], "versions": {"jax": "1"}, "initial_weights": "random",
        "settings": {
            "trigger": 32, "initial_samples": 10_000,
            "strategy": "proactive" if cell.startswith("proactive") else "sparse",
        },
        **more,
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
    # From tables: 2.228 and 2.093 for 10 and 19 degrees of freedom.
    assert interval([0.0, 2.0] * 5 + [1.0])[1] == pytest.approx(2.228 / 11**0.5, abs=1e-3)
    assert interval([0.0, 2.0] * 10)[1] == pytest.approx(2.093 / 19**0.5, abs=1e-3)
    assert plus_minus([0.5]) == "0.50 (1 seed)"
    assert plus_minus([]) == "not run"


def test_the_report_says_what_was_run_and_what_was_not(folder):
    assert report.main(report.Options(out=str(folder / "out"))) == 0
    text = (folder / "out" / "mnist-full-lenet5" / "report.md").read_text()
    assert "| top-k 1e-3, per tensor | 97.20 ± 2.24 | 0.200 ± 0.248 | 496 | 498 |" in text
    assert "| frozen initial model | 50.00 ± 0.00 | -47.000 ± 2.484 | - | - |" in text
    assert "64, added for the 6 of 6 runs that were not signed" in text
    assert "| full retraining | not run | - | - | - |" in text
    assert "steps every 32 samples" in text
    assert "Seeds 0, 1, 2; initial weights: random; data: MNIST, tensorflow_datasets' mnist" in text
    for name in ("accuracy_over_stream", "accuracy_bytes", "changed_parameters"):
        picture = (folder / "out" / "mnist-full-lenet5" / f"{name}.png").read_bytes()
        assert b"Seeds 0, 1, 2" in picture  # its caption travels with it
    assert not (folder / "out" / "cifar10-full-resnet18").exists()


def test_a_form_is_compared_with_float32_on_the_same_seeds(folder):
    write(folder / "mnist-full", "top_k-0.001-tensor-int8", 1, 0.971, 216)
    row = values.draw(load("mnist", "full", "lenet5"), folder, "").splitlines()
    assert "| 1e-3 | tensor | int8 | 97.10 (1 seed) | -0.100 (1 seed) | 280 | 882 |" in row


def test_qsgd_is_compared_with_dense_training(folder):
    write(folder / "mnist-full", "qsgd-4", 1, 0.971, 936)
    row = values.draw(load("mnist", "full", "lenet5"), folder, "").splitlines()
    assert "| all | tensor | QSGD, 4 bits | 97.10 (1 seed) | 0.100 (1 seed) | 1,000 | 247 |" in row


def test_an_unknown_figure_is_named(folder, capsys):
    assert report.main(report.Options(only=("pie",), out=str(folder))) == 2
    assert "no figure 'pie'; give one of strategies" in capsys.readouterr().err


def test_bytes_are_counted_against_the_model():
    summary = {"bytes_sent": 500, "versions": 5, "dense_bytes": 40_000}
    header = {"settings": {"strategy": "full"}}
    runs = [Result(header, [], summary), Result(header, [], summary | {"bytes_sent": 1500})]
    assert [r.bytes_an_update for r in runs] == [100, 300]
    assert stored.sizes(runs) == "200 | 200"  # the mean, and the model in means


def test_a_signature_is_added_where_there_is_none():
    summary = {"bytes_sent": 500, "versions": 5, "dense_bytes": 40_000}
    header = {"settings": {"strategy": "sparse"}}
    runs = [Result(header | more, [], summary) for more in ({}, {"signed": True})]
    assert [r.bytes_an_update for r in runs] == [164, 100]
    assert "64, added for the 1 of 2 runs that were not signed" in stored.signatures(runs)
    assert stored.signatures(runs[1:]) == ""


def test_a_row_of_fewer_seeds_than_others_says_so(folder):
    for seed, accuracy in enumerate((0.9, 0.91)):
        write(folder / "mnist-full", "full", seed, accuracy)
    rows = strategies.draw(load("mnist", "full", "lenet5"), folder, "")
    assert "| full retraining | 90.50 ± 6.35 (2 seeds) | -7.000 ± 12.706 (2 seeds) |" in rows


def test_the_paper_s_order_stands_beside_what_is_nearest_below_it_in_bytes(folder):
    for seed in range(3):
        write(folder / "mnist-full", "top_k-0.1-tensor-float32", seed, 0.902, 19_990)
        write(folder / "mnist-full", "top_k-0.4-tensor-float32", seed, 0.99, 20_001)
    results = load("mnist", "full", "lenet5")
    found = order.nearest(results, "top_k-0.001-tensor-float32-before")
    assert found == ["top_k-0.1-tensor-float32", "top_k-0.001-tensor-float32"]
    rows = order.draw(results, folder, "").splitlines()
    first = "| 1e-3 | 90.00 ± 0.00 | 20,064 | 0.1 | top-k 1e-"
    assert f"{first}1, per tensor | 20,054 | 1.0 | 0.200 ± 0.000 | yes, better |" in rows
    assert f"{first}3, per tensor | 496 | 40.5 | 7.200 ± 2.236 | yes, better |" in rows
    assert "| 1e-5 | not run | - | - | - | - | - | - | - |" in rows
    assert "Not run: top-k 1e-2, per tensor, before the optimizer;" in rows[-1]


def test_what_changes_in_a_step_is_the_mean_of_all_seeds(folder):
    for seed, entries in enumerate((617, 1234, 1851)):
        cell = "top_k-0.01-tensor-float32-before"
        write(folder / "mnist-full", cell, seed, 0.9, 20_000, entries)
    rows = order.draw(load("mnist", "full", "lenet5"), folder, "")
    assert "| 1e-2 | 90.00 ± 0.00 | 20,064 | 2.0 |" in rows


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        ([], "no seed in both"),
        ([1.0], "one seed"),
        ([1.0, -1.0], "no"),
        ([-1.0, -1.1], "yes, worse"),
    ],
)
def test_a_difference_is_beyond_the_noise_or_not(apart, said):
    assert order._told_apart(apart) == said


def test_the_stream_begins_behind_the_initial_training(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    write(tmp_path / "mnist-full", "full", 0, 0.9)
    path = tmp_path / "mnist-full" / "lenet5-full-s0.jsonl"
    header, *points, summary = map(json.loads, path.read_text().splitlines())
    # Full retraining: one version each 10,000 samples, behind an initial training on 10,000.
    points = [p | {"position": 10_000 * (i + 2), "version": i + 1} for i, p in enumerate(points)]
    lines = [header, *points, summary]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    x, y = accuracy_over_stream.curve(load("mnist", "full", "lenet5").get("full"), "accuracy")
    assert (x, y) == ([10_000, 20_000, 30_000], [90.0] * 3)


def test_results_of_other_initial_weights_are_reported_apart(folder):
    write(folder / "mnist-full-abcd1234", "full", 0, 0.9, initial_weights="w, abcd1234ff")
    assert report.main(report.Options(out=str(folder / "out"))) == 0
    text = (folder / "out" / "mnist-full-abcd1234-lenet5" / "report.md").read_text()
    assert "initial weights: w, abcd1234ff;" in text
    assert "| full retraining | 90.00 (1 seed) | - |" in text
    plain = (folder / "out" / "mnist-full-lenet5" / "report.md").read_text()
    assert "| full retraining | not run |" in plain


def test_training_time_says_what_is_far_from_the_step_counts(folder, monkeypatch):
    monkeypatch.setattr(accuracy_time, "RESULTS", folder)
    rows = [
        {"cell": cell, "seed": seed, "steps": 10, "time / full retraining": time + 0.002 * seed,
         "steps / full retraining": 0.5, "one retraining / one step": [300.0, 900.0]}
        for cell, time in (("proactive-8", 0.48), ("proactive-16", 0.4))
        for seed in range(3)
    ]  # fmt: skip
    measured = {"cells": rows, "retraining": [{"seconds": [1.0]}], "device": "a", "command": "b"}
    (folder / "training_time.json").write_text(json.dumps(measured))
    text = accuracy_time.draw(load("mnist", "full", "lenet5"), folder, "")
    assert "| 0.482 (0.480 to 0.484) | 0.500 | -3.6% | -3.6 ± 1.0 | 300 to 900 |" in text
    assert "say, in the median: proactive, trigger 16 19.6% faster; intervals that reach" in text
    assert "beyond: proactive, trigger 16." in text
    assert "threads not recorded, random initial weights, data: MNIST" in text
    assert "which makes the others look faster" in text
    made = {"method": "a", "threads": 2}
    measured["cells"] = [row | made for row in rows]
    (folder / "training_time.json").write_text(json.dumps(measured))
    text = accuracy_time.draw(load("mnist", "full", "lenet5"), folder, "")
    assert "2 thread(s)" in text
    assert "look faster" not in text


def test_every_row_of_the_bytes_of_models_is_there_or_not_run(folder, monkeypatch):
    monkeypatch.setattr(update_bytes, "RESULTS", folder)
    row = {"density": 1e-3, "scope": "global", "values": "int8", "bytes": 25_704.0,
           "times_less": 1741.6, "threads": 2}  # fmt: skip
    rows = [{"model": "resnet18", **row}, {"model": "lenet5", **row}]
    measured = {"rows": rows, "about": "About.", "device": "a", "versions": {}, "command": "b"}
    (folder / "update_bytes.json").write_text(json.dumps(measured))
    write(folder / "mnist-full", "top_k-0.001-global-int8", 0, 0.9)
    text = update_bytes.draw(folder, "")
    assert "| resnet18 | 1e-3 | global | int8 | 25,704 | 1,742 | not run |" in text
    assert "| lenet5 | 1e-3 | global | int8 | 25,704 | 1,742 | 90.00 (1 seed), full |" in text
    assert "| densenet161 | 1e-5 | tensor | bf16 | not run | - | not run |" in text
    assert text.count("\n| ") == 5 * 4 * 2 * 6
    assert "a, 2 thread(s)" in text
    assert "(JPEG copies)" in text
