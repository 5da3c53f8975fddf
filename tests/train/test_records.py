import dataclasses
import functools
import json
import subprocess
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cdl_jax.errors import CheckpointError, ConfigError
from cdl_jax.train import TrainConfig
from cdl_jax.train.job import config_toml
from cdl_jax.train.plain_json import line
from cdl_jax.train.progress import Summary
from cdl_jax.train.records import Records
from cdl_jax.train.scorecard import Scorecard
from tests.train import small

X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
LABEL = (X[:, 0] > 0).astype(np.int64)
QUICK = TrainConfig(
    dataset="iterator", model="mlp", initial_samples=64, epochs=1, limit=32, trigger=8,
    batch_size=32, density=0.05, digest_every=0, checkpoint_every=0,
)  # fmt: skip


def strict(text):
    """As RFC 8259 has it."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null():
    record = {"a": 1.5, "b": float("nan"), "c": {"d": float("-inf"), "e": "NaN"}, "f": None}
    assert strict(line(record)) == {"a": 1.5, "b": None, "c": {"d": None, "e": "NaN"}, "f": None}
    summary = Summary("sparse", loss=float("nan"), metrics={"f1": float("inf")})
    read = strict(summary.to_json())
    assert (read["loss"], read["metrics"]) == (None, {"f1": None})


def test_about_has_every_life_of_a_run_and_none_of_another(tmp_path):
    path = tmp_path / "about.json"
    first = Records(str(tmp_path))
    first.begin()
    first.about({"seed": 4})
    first.line({"version": 1})
    first.close()
    again = Records(str(tmp_path))
    again.look(1, (tmp_path / "metrics.jsonl").stat().st_size)
    again.resume()
    again.about({"seed": 5})
    again.close()
    lives = json.loads(path.read_text())
    assert [(life["seed"], life["version"]) for life in lives] == [(4, 0), (5, 1)]
    assert lives[0]["began"] <= lives[1]["began"]
    assert len(lives[0]["commit"]) in (0, 40)
    path.write_text('{"seed": 4}')
    with pytest.raises(CheckpointError, match=r"about.json is no list of the run's lives"):
        again.about({})
    other = Records(str(tmp_path))
    other.begin()
    other.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("url", "masked"),
    [("redis://:hunter2@h/s", "redis://***@h/s"), ("rediss://me:hunter2@h:1/s", "rediss://***@h:1/s"),
     ("redis://:p@ss:hunter2@h/s", "redis://***@h/s"),
     ("redis://:hunter2@h/s?store=s3://k:hunter2@b", "redis://***@h/s?store=s3://***@b"),
     ("redis://h/s?store=/home/me@x/f", "redis://h/s?store=/home/me@x/f")],
)  # fmt: skip
def test_passwords_are_not_written_down(url, masked):
    config = TrainConfig(dataset=url, log=url, run="r", initial_samples=9)
    config = config.checked()
    assert config.recorded() | {"dataset": masked, "log": masked} == config.recorded()
    assert "hunter2" not in config_toml(config)
    assert config.dataset == url


@pytest.mark.parametrize(
    "changes",
    [{"dataset": "redi://:hunter2@h/s"}, {"dataset": "redis://:hunter2@h/s"},
     {"dataset": "redis://***@h/s", "initial_samples": 9}, {"log": "redis://***@h/s?store=f"}],
)  # fmt: skip
def test_no_sentence_has_a_password_and_a_masked_one_is_none(changes):
    with pytest.raises(ConfigError) as said:
        TrainConfig(**changes).checked()
    assert "hunter2" not in str(said.value)
    if "***" in str(changes):
        assert "give them with --" in str(said.value)


@pytest.mark.usefixtures("standard_promotion")
def test_a_run_goes_on_with_another_password_and_writes_down_neither(tmp_path):
    def source(held, last):
        for x, label in zip(X[held:], LABEL[held:], strict=True):
            yield {"x": x, "label": label}

    for word, limit in (("hunter2", 32), ("hunter3", 48)):
        config = dataclasses.replace(QUICK, dataset=f"redis://:{word}@h/s", limit=limit)
        summary = small.go(config, tmp_path, source)
    assert summary.versions == 6
    lives = strict((tmp_path / "run" / "about.json").read_text())
    assert [life["config"]["limit"] for life in lives] == [32, 48]
    assert [life["version"] for life in lives] == [0, 4]
    found = subprocess.run(["grep", "-rl", "hunter[23]", str(tmp_path)], capture_output=True)
    assert found.stdout == b""


@pytest.fixture
def numpy_data(tmp_path, standard_promotion):
    """With one sample that is no number, in the stream."""
    x = X.copy()
    x[64 + 20] = np.nan
    np.savez(tmp_path / "d.npz", x=x, label=LABEL)
    return {"dataset": f"numpy:{tmp_path}/d.npz", "model": f"{__name__}:linear"}


def linear(data):
    """A model of one's own, which takes any numbers."""

    def init_fn(key, inputs):
        return {"w": jnp.zeros((4, 2))}, {}

    def predict_fn(params, model_state, inputs):
        return inputs @ params["w"]

    def loss_fn(params, model_state, batch, key):
        logits = predict_fn(params, model_state, batch["x"])
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (model_state, {})

    return types.SimpleNamespace(init_fn=init_fn, loss_fn=loss_fn, predict_fn=predict_fn)


def test_one_sample_without_a_finite_loss_spoils_no_score(tmp_path, numpy_data):
    go = functools.partial(small.go, QUICK, limit=80, **numpy_data)
    summary = go(tmp_path)
    rows = [strict(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["nonfinite_losses"] for row in rows] == [0, 0, 1, *[0] * 7]
    assert summary.nonfinite_losses == 1
    assert rows[2]["prequential_loss"] is not None
    weights = [row["samples"] - row["nonfinite_losses"] for row in rows]
    mean = np.average([row["prequential_loss"] for row in rows], weights=weights)
    assert summary.loss == pytest.approx(mean)
    for name in ("mean_loss", "window_loss", "fading_loss", "accuracy"):
        assert all(np.isfinite(row[name]) for row in rows)
    read = strict((tmp_path / "run" / "summary.json").read_text())
    assert (read["loss"], read["nonfinite_losses"], read["samples"]) == (summary.loss, 1, 80)


def test_a_resume_counts_the_same_where_losses_are_not_finite(tmp_path, numpy_data, monkeypatch):
    pytest.importorskip("river")
    go = functools.partial(
        small.go, QUICK, limit=80, **numpy_data, checkpoint_every=3, label_delay=12,
        on_drift="share", trigger=1, window=7, fading_factor=0.1,
    )  # fmt: skip
    whole = go(tmp_path / "whole")
    small.same_lineage(tmp_path / "whole", tmp_path / "cut")
    small.crash(monkeypatch, 29, lambda: go(tmp_path / "cut"))
    again = go(tmp_path / "cut")
    assert dataclasses.replace(again, seconds=0.0) == dataclasses.replace(whole, seconds=0.0)
    ours, theirs = (
        [{k: v for k, v in row.items() if not k.endswith("_at")} for row in small.metrics(path)]
        for path in (tmp_path / "cut", tmp_path / "whole")
    )
    assert ours == theirs
    assert [row["version"] for row in ours if row["prequential_loss"] is None] == [21]


def test_a_resume_with_another_window_is_refused(tmp_path, numpy_data, monkeypatch):
    go = functools.partial(small.go, QUICK, **numpy_data)
    go(tmp_path)
    with pytest.raises(CheckpointError, match="window is 5 here, 1000 there"):
        go(tmp_path, limit=40, window=5)
    with pytest.raises(CheckpointError, match=r"fading_factor is 0.5 here, 0.002 there"):
        go(tmp_path, limit=40, fading_factor=0.5)
    rights, count = [], Scorecard.count

    def noted(self, scored, *others):
        rights.extend(right for right, _, _ in scored)
        return count(self, scored, *others)

    monkeypatch.setattr(Scorecard, "count", noted)
    summary = go(tmp_path, limit=40, window=5, new_lineage=True, log=str(tmp_path / "new"))
    assert (summary.versions, len(rights)) == (5, 8)
    assert small.metrics(tmp_path)[-1]["window_accuracy"] == sum(rights[-5:]) / 5


def test_windows_and_weights_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="window is 0; give 1 or more"):
        TrainConfig(window=0).checked()
    for value in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=f"fading_factor is {value}; give a share in"):
            TrainConfig(fading_factor=value).checked()
