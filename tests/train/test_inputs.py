"""Runs on data of one's own: files, flat features, live streams, models from outside."""

import functools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.data.redis_source import to_entry
from cdl_jax.deploy import Replica, open_log
from cdl_jax.deploy.predictors import built_in
from cdl_jax.errors import CheckpointError, ConfigError, DataError
from cdl_jax.train import TrainConfig
from tests.deploy.broker import Broker, needs_redis
from tests.train import small
from tests.train.small import crash, same_lineage

QUICK = TrainConfig(
    initial_samples=64, epochs=1, limit=80, trigger=8, batch_size=32, density=0.05, model="mlp",
    snapshot_every=4, digest_every=0, checkpoint_every=3,
)  # fmt: skip
go = functools.partial(small.go, QUICK)
pytestmark = pytest.mark.usefixtures("standard_promotion")
X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
LABEL = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def blobs(path):
    log = open_log(str(path / "log"))
    return [log.read(v) for v in range(1, log.head() + 1)]


def test_flat_features_from_files_are_trained_and_served(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, label=LABEL)
    settings = {"epochs": 40, "learning_rate": 3e-3}
    summary = go(tmp_path, dataset=f"numpy:{tmp_path}/d.npz", **settings)
    assert summary.accuracy > 0.65
    log = open_log(str(tmp_path / "log"))
    replica = Replica(log)
    assert replica.full_digest() == summary.digest
    predictor = built_in(log.manifest())
    assert (predictor.shape, predictor.dtype) == ((6,), np.float32)
    with replica.lease() as lease:
        logits = predictor.predict_fn(lease.tree["params"], {}, X[:100])
    assert (np.argmax(logits, 1) == LABEL[:100]).mean() > 0.7
    moved = tmp_path / "moved.npz"
    (tmp_path / "d.npz").rename(moved)
    assert go(tmp_path, dataset=f"numpy:{moved}", **settings).digest == summary.digest
    np.savez(moved, x=X + 1, label=LABEL)
    with pytest.raises(CheckpointError, match="another configuration .inputs is"):
        go(tmp_path, dataset=f"numpy:{moved}", **settings)


def linear(data):
    """A factory as a user writes it: regression on two fields, scored by a tolerance."""
    assert data.classes == 0

    def init_fn(key, inputs):
        return {"w": jnp.zeros(inputs["a"].shape[1])}, {}

    def predict_fn(params, model_state, inputs):
        return inputs["a"] @ params["w"] + inputs["b"]

    def score_fn(outputs, batch):
        apart = jnp.abs(outputs - batch["label"])
        return apart < 1.0, apart**2

    def loss_fn(params, model_state, batch, key):
        return jnp.mean(score_fn(predict_fn(params, {}, batch), batch)[1]), (model_state, {})

    return SimpleNamespace(
        init_fn=init_fn, loss_fn=loss_fn, predict_fn=predict_fn, score_fn=score_fn
    )


def test_a_model_of_ones_own(tmp_path):
    b = np.linspace(0, 1, 200)
    target = X @ np.arange(6) / 3 + b
    for name, array in {"a": X, "b": b, "label": target}.items():
        (tmp_path / "d").mkdir(exist_ok=True)
        np.save(tmp_path / "d" / f"{name}.npy", array)
    settings = {"dataset": f"numpy:{tmp_path}/d", "learning_rate": 0.05, "epochs": 30}
    summary = go(tmp_path, model=f"{__name__}:linear", **settings)
    assert summary.accuracy > 0.9
    assert 0 < summary.loss < 0.5
    with pytest.raises(ConfigError, match="model mlp takes one field and integer labels"):
        go(tmp_path / "b", **settings)
    with pytest.raises(ConfigError, match="cannot find nowhere:x"):
        go(tmp_path / "b", model="nowhere:x", **settings)


def stream(stop):
    """A source that cannot be asked twice: each life gets the samples that no earlier one got."""
    samples = iter(range(stop))

    def source(held, last):
        for i in samples:
            yield {"x": X[i], "label": LABEL[i]}

    return source


@pytest.mark.parametrize("history", ["inverse_use", "reservoir", "window"])
def test_a_live_stream_that_was_cut_off_goes_on_to_the_same_bytes(tmp_path, monkeypatch, history):
    from cdl_jax.data import spool

    monkeypatch.setattr(spool, "_SEGMENT_ROWS", 16)
    settings = {"dataset": "iterator", "history": history, "history_size": 32, "limit": None,
                "keep_checkpoints": 1}  # fmt: skip
    whole = go(tmp_path / "whole", stream(197), **settings)
    assert (whole.samples, whole.versions) == (133, 17)  # the last of 5 samples
    same_lineage(tmp_path / "whole", tmp_path / "cut")
    source = stream(197)
    crash(monkeypatch, 2, lambda: go(tmp_path / "cut", source, **settings))
    crash(monkeypatch, 14, lambda: go(tmp_path / "cut", source, **settings))
    again = go(tmp_path / "cut", source, **settings)
    assert again.digest == whole.digest
    assert again.accuracy == whole.accuracy
    assert blobs(tmp_path / "cut") == blobs(tmp_path / "whole")
    segments = {int(p.name) for p in (tmp_path / "cut" / "run" / "samples").glob("0*")}
    assert {0, 16, 32, 48} <= segments  # what the initial training saw
    assert (64 in segments) == (history == "inverse_use")
    assert max(segments) == 192


def test_a_new_lineage_on_a_live_stream_asks_for_no_samples_that_are_gone(tmp_path, monkeypatch):
    from cdl_jax.data import spool

    monkeypatch.setattr(spool, "_SEGMENT_ROWS", 16)
    settings = {"dataset": "iterator", "limit": None, "keep_checkpoints": 1, "batch_size": 16}
    go(tmp_path, stream(165), **settings, history="reservoir", history_size=48)
    for number, (history, size) in enumerate(
        [("uniform", 48), ("window", 120), ("inverse_use", 48), ("balanced", 9), ("reservoir", 64)]
    ):
        words = rf"cannot go on with --history {history} of {size}: .*; keep --history reservoir of"
        with pytest.raises(CheckpointError, match=words):
            go(tmp_path, stream(0), **settings, history=history, history_size=size,
               new_lineage=True, log=str(tmp_path / f"new{number}"))  # fmt: skip
    for history, size, stop in [("reservoir", 20, 173), ("window", 20, 181), ("window", 16, 189)]:
        summary = go(tmp_path, stream(8), **settings, history=history, history_size=size,
                     new_lineage=True, log=str(tmp_path / f"{history}{size}"))  # fmt: skip
        assert summary.samples == stop - 64


def test_images_from_an_iterator_and_a_time_trigger(tmp_path):
    import time

    rng = np.random.default_rng(0)

    def source(held, last):
        for i in range(held, 120):
            time.sleep(0.002 if i > 64 else 0)
            yield {"image": rng.integers(0, 256, (28, 28, 1), np.uint8), "label": i % 10}

    summary = go(tmp_path, source, dataset="iterator", model="lenet5", trigger_seconds=0.05)
    assert summary.samples == 56
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(row)["samples"] for row in rows) <= 32
    assert Replica(open_log(str(tmp_path / "log"))).full_digest() == summary.digest


def test_live_streams_say_what_is_wrong(tmp_path):
    with pytest.raises(
        DataError, match="ended after 50 samples, but the initial training takes 64"
    ):
        go(tmp_path / "a", stream(50), dataset="iterator")
    with pytest.raises(DataError, match="brought no sample for 0.1 s"):
        go(tmp_path / "b", lambda held, last: iter(lambda: __import__("time").sleep(2), 1),
           dataset="iterator", stall_seconds=0.1)  # fmt: skip
    for changes, words in [
        ({"dataset": "iterator", "run": None}, "a live stream needs --run beside --log"),
        ({"dataset": "iterator", "pace": 3.0}, "pace is 3.0, but a live stream brings its own"),
        ({"dataset": "iterator", "initial_samples": -1}, "iterator needs --initial-samples"),
        ({"dataset": "redis://127.0.0.1:1"}, "names no stream"),
        ({"dataset": "csv:x"}, "dataset is 'csv:x'; give one of digits, .*redis"),
        ({"dataset": "iterator:nowhere:f"}, "cannot find nowhere:f"),
        ({"dataset": "iterator"}, "give it in Python, or iterator:MODULE:FUNCTION"),
    ]:
        with pytest.raises(ConfigError, match=words):
            go(tmp_path / "c", **changes)


@needs_redis
def test_a_redis_stream_is_read_on_from_its_position(tmp_path, monkeypatch):
    import redis

    broker = Broker(tmp_path / "broker")
    try:
        client = redis.Redis(port=broker.port)

        def add(start, stop):
            for i in range(start, stop):
                row = {"x": json.dumps(X[i].tolist()), "label": str(LABEL[i])}
                client.xadd("s", to_entry({"x": X[i], "label": LABEL[i]}) if i % 2 else row)

        settings = {"dataset": f"redis://127.0.0.1:{broker.port}/s", "limit": 72}
        add(0, 100)
        crash(monkeypatch, 4, lambda: go(tmp_path / "cut", **settings))
        add(100, 150)
        cut = go(tmp_path / "cut", **settings)
        whole = go(tmp_path / "whole", **settings)
        assert (cut.digest, cut.accuracy) == (whole.digest, whole.accuracy)
        files = go(tmp_path / "iterator", stream(150), dataset="iterator", limit=72)
        assert files.digest == whole.digest
        add(150, 180)
        client.xtrim("s", maxlen=5)
        with pytest.raises(DataError, match="entries of .* were trimmed before this run read them"):
            go(tmp_path / "cut", **{**settings, "limit": 100})
    finally:
        broker.kill()


@needs_redis
def test_a_broker_out_of_reach_is_a_stall(tmp_path):
    settings = {"dataset": "redis://127.0.0.1:1/s", "stall_seconds": 0.3}
    with pytest.raises(DataError, match="redis://127.0.0.1:1/s brought no sample for 0.3 s"):
        go(tmp_path, **settings)
