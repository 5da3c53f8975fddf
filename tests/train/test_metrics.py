"""The user's own metrics beside accuracy and loss: prequential, resumed, in every kind of run."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import ConfigError
from cdl_jax.train import TrainConfig
from tests.train import small
from tests.train.small import crash, metrics, same_lineage

X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
LABEL = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)
QUICK = TrainConfig(
    initial_samples=64, epochs=1, limit=80, trigger=8, batch_size=32, density=0.05, model="mlp",
    metrics=f"{__name__}:of_samples", snapshot_every=4, digest_every=0, checkpoint_every=3,
)  # fmt: skip
go = functools.partial(small.go, QUICK)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def of_samples(logits, batch):
    """One that accuracy must equal, one that not every sample has."""
    label = batch["label"]
    first = jnp.where(label == 1, batch["x"][:, 0], jnp.nan)
    return {"right": jnp.argmax(logits, -1) == label, "first": first}


def flat(logits, batch):
    return {"mean": jnp.mean(logits)}


def listed(logits, batch):
    return [jnp.mean(logits)]


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, label=LABEL)
    return f"numpy:{tmp_path}/d.npz"


@pytest.mark.parametrize("changes", [{}, {"scan": 4}, {"label_delay": 20}, {"devices": 0}])
def test_metrics_of_ones_own_are_prequential(tmp_path, data, changes):
    summary = go(tmp_path, dataset=data, **changes)
    stop = 0
    for line in metrics(tmp_path):
        stop += line["samples"]
        for kind in ("", "window_", "fading_"):
            assert line["scores"][f"{kind}right"] == line[f"{kind}accuracy"]
        seen = slice(64, 64 + stop)
        ones = X[seen, 0][LABEL[seen] == 1]
        assert line["scores"]["first"] == pytest.approx(ones.mean(dtype=np.float64), rel=1e-6)
    assert summary.metrics == {"right": summary.accuracy, "first": line["scores"]["first"]}


def test_a_resumed_run_has_the_metrics_of_one_never_killed(tmp_path, data, monkeypatch):
    settings = {"dataset": data, "label_delay": 12}
    whole = go(tmp_path / "whole", **settings)
    same_lineage(tmp_path / "whole", tmp_path / "cut")
    crash(monkeypatch, 5, lambda: go(tmp_path / "cut", **settings))
    assert go(tmp_path / "cut", **settings).metrics == whole.metrics
    ours, theirs = metrics(tmp_path / "cut"), metrics(tmp_path / "whole")
    assert [line["scores"] for line in ours] == [line["scores"] for line in theirs]


def test_a_metric_may_come_later_and_changes_no_bit_of_the_log(tmp_path, data):
    go(tmp_path, dataset=data, limit=40, metrics=None)
    assert "scores" not in metrics(tmp_path)[-1]
    both = go(tmp_path, dataset=data)
    assert both.metrics["first"] == pytest.approx(X[104:144, 0][LABEL[104:144] == 1].mean())


@pytest.mark.parametrize(
    ("name", "words"),
    [("flat", r"metrics gave mean the shape \(\); give a number for each sample, \(8,\)"),
     ("listed", "metrics gave list; give a dict of arrays by name"),
     ("nothing", f"cannot find {__name__}:nothing")],
)  # fmt: skip
def test_a_wrong_function_is_told(tmp_path, data, name, words):
    with pytest.raises(ConfigError, match=words):
        go(tmp_path, dataset=data, metrics=f"{__name__}:{name}")
    began = (tmp_path / "run" / "config.toml").exists()  # written as the initial training begins
    assert began == (name != "nothing")
