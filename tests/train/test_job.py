import dataclasses
import functools
import json
import shutil
import sys
import types

import numpy as np
import pytest

from cdl_jax.data import UniformHistory, load
from cdl_jax.deploy import Replica, open_log
from cdl_jax.errors import CheckpointError, ConfigError, LogError, TrainingError
from cdl_jax.train import TrainConfig, beginning, run, strategies
from cdl_jax.train.delivery import Delivery
from cdl_jax.train.loop import ContinuousTrainer
from tests.train.small import crash

QUICK = TrainConfig(
    initial_samples=128, epochs=1, limit=80, trigger=8, batch_size=32, density=0.01,
    snapshot_every=4, digest_every=1,
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("standard_promotion")


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def go(path, **changes):
    places = {"log": str(path / "log"), "run": str(path / changes.pop("run", "run"))}
    config = dataclasses.replace(QUICK, **places, **changes)
    return run(config.checked())


def test_a_run_publishes_what_replicas_serve(tmp_path):
    summary = go(tmp_path)
    assert (summary.versions, summary.samples, summary.full_digests) == (10, 80, 10)
    replica = Replica(open_log(str(tmp_path / "log")))
    assert replica.version == 10  # the last version has a snapshot
    assert replica.full_digest() == summary.digest
    records = lines(tmp_path / "run")
    assert [r["version"] for r in records] == list(range(1, 11))
    assert sum(r["bytes"] for r in records) == summary.bytes_sent
    assert records[-1]["full_digest"] == summary.digest
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"] == (
        sum(r["correct"] for r in records) / 80
    )
    for record in records:
        assert (
            record["first_at"]
            <= record["full_at"]
            <= record["made_at"]
            <= record["acknowledged_at"]
        )


def test_the_same_command_again_makes_the_same_bytes_and_goes_on(tmp_path):
    first = go(tmp_path, limit=50)  # 7 triggers, the last of 2 samples
    assert first.versions == 7
    log = open_log(str(tmp_path / "log"))
    blobs = [log.read(v) for v in range(1, 8)]
    again = go(tmp_path, limit=50)
    assert [log.read(v) for v in range(1, 8)] == blobs
    assert again.digest == first.digest
    shutil.rmtree(tmp_path / "run")  # with no checkpoint it starts over
    again = go(tmp_path, limit=50)
    assert [log.read(v) for v in range(1, 8)] == blobs
    assert again.digest == first.digest
    with pytest.raises(LogError, match=r"another configuration \(density is 0.02 here, 0.01"):
        go(tmp_path, run="another", density=0.02)
    with pytest.raises(LogError, match="another configuration"):
        go(tmp_path, run="a-third", seed=1)
    assert [log.read(v) for v in range(1, 8)] == blobs


@pytest.mark.parametrize(
    "changes",
    [{"strategy": "proactive"}, {"strategy": "online", "trigger": 40}, {"include_new": False},
     {"compressor": "random_k"}, {"compressor": "quantize", "bits": 2}, {"scope": "global"},
     {"trigger": 32}, {"order": "before"}, {"strategy": "frozen", "trigger": 16},
     {"strategy": "full", "trigger": 40, "batch_size": 48}],
)  # fmt: skip
def test_every_strategy_runs_and_replicates(tmp_path, changes):
    summary = go(tmp_path, **changes)
    replica = Replica(open_log(str(tmp_path / "log")))
    assert replica.full_digest() == summary.digest
    assert summary.full_digests == summary.versions > 1


@pytest.mark.parametrize("delay", [0, 20])
def test_scores_are_those_of_the_model_that_met_the_sample(tmp_path, delay):
    """Replays the log in NumPy: a sample is met by the version that the labels before it made."""
    go(tmp_path, label_delay=delay, window=30, fading_factor=0.05)
    logits = _logits_of_every_version(tmp_path / "log")
    labels = load("digits").batch(slice(128, 208))["label"]
    met = [logits[max(0, at - delay) // 8][at] for at in range(80)]
    right = [int(x.argmax() == label) for x, label in zip(met, labels, strict=True)]
    losses = [
        np.log(np.exp(x.astype(np.float64)).sum()) - x[label]
        for x, label in zip(met, labels, strict=True)
    ]
    for record in lines(tmp_path / "run"):
        stop = 8 * record["version"]
        assert record["correct"] == sum(right[stop - 8 : stop])
        assert record["accuracy"] == sum(right[:stop]) / stop
        expected = {
            "prequential_loss": np.mean(losses[stop - 8 : stop]),
            "mean_loss": np.mean(losses[:stop]),
            "window_loss": np.mean(losses[max(0, stop - 30) : stop]),
            "window_accuracy": np.mean(right[max(0, stop - 30) : stop]),
            "fading_loss": functools.reduce(lambda m, x: m + 0.05 * (x - m), losses[:stop]),
        }
        assert {name: record[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert len({x.tobytes() for x in logits}) == 11  # else any version would do


def _logits_of_every_version(log):
    """Of the 80 samples of the stream, [version][sample]."""
    from cdl_jax.deploy.numpy_model import NumpyModel
    from cdl_jax.models import classifier, create_model
    from cdl_jax.wire import decode_snapshot, decode_update

    data, log = load("digits"), open_log(str(log))
    predict = classifier(create_model("lenet5"), (data.mean, data.std)).predict_fn
    images, out = data.batch(slice(128, 208))["image"], []
    model = NumpyModel(decode_snapshot(log.read_snapshot(0)))
    for version in range(11):
        if version:
            model.apply(model.plan(decode_update(log.read(version))))
        out.append(np.asarray(predict(model.tree()["params"], {}, images)))
    return out


def test_history_is_what_came_before_and_new_samples_are_all_there(monkeypatch, tmp_path):
    drawn = []
    draw = UniformHistory.draw

    def spy(self, step, available, size):
        drawn.append((available, size))
        return draw(self, step, available, size)

    monkeypatch.setattr(UniformHistory, "draw", spy)
    go(tmp_path, limit=20)
    assert drawn == [(128, 24), (136, 24), (144, 28)]
    drawn.clear()
    go(tmp_path / "b", limit=20, include_new=False)
    assert drawn == [(136, 32), (144, 32), (148, 32)]


def test_a_parameter_changed_behind_the_trainers_back_stops_the_run(tmp_path, monkeypatch):
    dispatch = ContinuousTrainer._dispatch

    def tampered(self, trigger):
        pending = dispatch(self, trigger)
        if self._version == 3:
            kernel = self.state.params["fc1"]["kernel"]
            params = self.state.params | {
                "fc1": self.state.params["fc1"] | {"kernel": kernel.at[0, 0].add(1e-3)}
            }
            self.state = self.state._replace(params=params)
        return pending

    monkeypatch.setattr(ContinuousTrainer, "_dispatch", tampered)
    with pytest.raises(TrainingError, match="version 3 .* changed outside the step"):
        go(tmp_path)
    assert open_log(str(tmp_path / "log")).head() == 2


def test_weight_decay_behind_the_sparsifier_stops_the_run(tmp_path, monkeypatch):
    import optax

    plan = strategies.plan

    def decayed(config):
        made = plan(config)
        return made._replace(links=(*made.links, optax.add_decayed_weights(1e-4)))

    monkeypatch.setattr("cdl_jax.train.steps.plan", decayed)
    monkeypatch.setattr("cdl_jax.train.beginning.plan", decayed)
    with pytest.raises(ValueError, match="behind or beside its sparsifier"):
        go(tmp_path)


def test_steps_that_are_never_finite_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cdl_jax.train.delivery.Delivery._check_digest", lambda self, info, state: "x"
    )
    from cdl_jax.train import steps

    step = steps.proactive_step

    def poisoned(state, history, stream, loss_fn, tx, **options):
        def bad(*args):
            loss, rest = loss_fn(*args)
            return loss * float("nan"), rest

        return step(state, history, stream, bad, tx, **options)

    monkeypatch.setattr(steps, "proactive_step", poisoned)
    with pytest.raises(TrainingError, match="5 steps in a row"):
        go(tmp_path, max_skipped=5)


def test_initial_training_that_diverges_says_so(tmp_path):
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        go(tmp_path, learning_rate=1e30)


def test_a_stream_with_nothing_in_it_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing is left for the stream"):
        go(tmp_path, initial_samples=1797)


@pytest.mark.parametrize(("owner", "place"), [(Delivery, "deliver"), (ContinuousTrainer, "_count")])
def test_an_interrupt_in_mid_version_ends_between_two(tmp_path, monkeypatch, owner, place):
    """The next step is on its way already; neither may be lost, counted twice or half published."""
    import os
    import signal

    work, versions = getattr(owner, place), iter(range(1, 11))

    def interrupted(self, *args, **options):
        out = work(self, *args, **options)
        if next(versions) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return out

    monkeypatch.setattr(owner, place, interrupted)
    summary = go(tmp_path, digest_every=0, snapshot_every=100)
    log = open_log(str(tmp_path / "log"))
    records = lines(tmp_path / "run")
    assert summary.interrupted
    assert summary.versions == log.head() == len(records) < 10
    assert [r["version"] for r in records] == list(range(1, summary.versions + 1))
    assert summary.samples == sum(r["samples"] for r in records)
    replica = Replica(log)
    replica.catch_up()
    assert replica.full_digest() == summary.digest


@pytest.mark.parametrize(
    ("package", "changes", "words"),
    [("river", {"on_drift": "share", "detector": "adwin"}, "detector adwin needs river: pip"),
     ("mlflow", {"track": "mlflow"}, "track mlflow needs more: pip install")],
)  # fmt: skip
def test_a_missing_extra_is_told_before_the_initial_training(
    tmp_path, monkeypatch, package, changes, words
):
    begun = []
    monkeypatch.setattr(beginning, "fit", lambda *a, **k: begun.append(1))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=words):
        go(tmp_path, **changes)
    assert not begun


def contents(folder):
    """The files of a run that a refused one must leave as they are."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "lock"}


def test_a_limit_before_what_is_made_again_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace())
    quick = {"model": "mlp", "checkpoint_every": 4, "digest_every": 0}
    crash(monkeypatch, 7, lambda: go(tmp_path, **quick))
    log = open_log(str(tmp_path / "log"))
    blobs = [log.read(version) for version in (5, 6, 7)]
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match="limit is 44, but .*/run is .* took 64 .* give 64 or"):
        go(tmp_path, **quick, limit=44)  # version 8 was on its way
    with pytest.raises(ConfigError, match="track wandb cannot begin"):
        go(tmp_path, **quick, track="wandb")
    changes = quick | {"learning_rate": 0.02, "new_lineage": True}
    with pytest.raises(LogError, match="another configuration"):
        go(tmp_path, **changes)
    (tmp_path / "run" / "about.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"about.json is no list"):
        go(tmp_path, **quick)
    (tmp_path / "run" / "about.json").write_bytes(before["about.json"])
    assert contents(tmp_path / "run") == before
    assert go(tmp_path, **quick, limit=64).versions == 8
    assert [log.read(version) for version in (5, 6, 7)] == blobs
    assert go(tmp_path, **quick, limit=44).versions == 8  # nothing is left to be made again
