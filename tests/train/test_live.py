"""Live streams in whole runs: late labels, what they leave on the disk, what they refuse."""

import functools
import json
import tempfile
import threading

import numpy as np
import pytest

from cdl_jax.data.live import END, LiveData
from cdl_jax.data.spool import Spool
from cdl_jax.deploy import open_log
from cdl_jax.errors import ConfigError, DataError
from cdl_jax.train import TrainConfig
from cdl_jax.train.arrival import LiveArrivals
from cdl_jax.train.delivery import Delivery
from cdl_jax.train.records import Records
from tests.train import small
from tests.train.small import crash, metrics

QUICK = TrainConfig(
    dataset="iterator", initial_samples=64, epochs=1, trigger=8, batch_size=32, density=0.05,
    model="mlp", snapshot_every=4, digest_every=0, checkpoint_every=3, learning_rate=0.01,
)  # fmt: skip
go = functools.partial(small.go, QUICK)
pytestmark = pytest.mark.usefixtures("standard_promotion")
X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
LABEL = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def rows(stop):
    return [{"x": X[i], "label": LABEL[i]} for i in range(stop)]


def held_on(some):
    return lambda held, last: iter(some[held:])


def scores(path):
    return [(r["position"], r["correct"], r["prequential_loss"]) for r in metrics(path)]


def test_late_labels_of_a_live_stream_score_as_those_of_a_file(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=X[:187], label=LABEL[:187])
    settings = {"label_delay": 20}
    file = go(tmp_path / "file", dataset=f"numpy:{tmp_path}/d.npz", **settings)
    live = go(tmp_path / "live", held_on(rows(187)), **settings)
    assert scores(tmp_path / "live") == scores(tmp_path / "file")
    assert live.samples == file.samples == 123
    assert (live.accuracy, live.digest) == (file.accuracy, file.digest)
    some = iter(rows(187))  # a source that gives each sample once
    crash(monkeypatch, 7, lambda: go(tmp_path / "cut", lambda h, last: some, **settings))
    cut = go(tmp_path / "cut", lambda h, last: some, **settings)
    assert (cut.accuracy, cut.loss, cut.digest) == (live.accuracy, live.loss, live.digest)
    assert scores(tmp_path / "cut") == scores(tmp_path / "live")


def test_the_last_snapshot_does_not_depend_on_when_the_source_says_that_it_ends(
    tmp_path, monkeypatch
):
    done, line = threading.Event(), Records.line

    def noted(self, record):
        line(self, record)
        if record["version"] == 3:
            done.set()

    def late(held, last):
        yield from rows(64 + 24)[held:]
        assert done.wait(100)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "line", noted)
        go(tmp_path / "late", late)
    go(tmp_path / "at once", held_on(rows(64 + 24)))
    for name in ("late", "at once"):
        log = open_log(str(tmp_path / name / "log"))
        assert (log.snapshots(), log.head()) == ([0, 3], 3)


def test_a_run_killed_before_its_last_snapshot_writes_it_in_the_next_life(tmp_path, monkeypatch):
    def killed(self, version, state):
        raise small.Crash

    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "finish", killed)
        with pytest.raises(small.Crash):
            go(tmp_path, held_on(rows(64 + 24)))
    log = open_log(str(tmp_path / "log"))
    assert (log.snapshots(), log.head()) == ([0], 3)
    again = go(tmp_path, held_on(rows(64 + 24)))  # makes no version: a checkpoint has them all
    assert (log.snapshots(), log.head(), again.versions) == ([0, 3], 3, 3)


class Came:
    """A stream of which so many samples are here, and no more come."""

    def __init__(self, here, stop=END):
        self.here, self.stop, self.asked = here, stop, []

    def __len__(self):
        return self.here

    def wait(self, stop, seconds=None):
        self.asked.append(stop)
        return self.here

    def arrived_at(self, place):
        return float(place)


def test_a_late_label_triggers_once_it_is_here():
    data = Came(10 + 8 + 5 - 1)
    arrivals = LiveArrivals(10, data, 8, lambda: data.stop, delay=5)
    assert not arrivals.next_is_here()
    timed = LiveArrivals(10, data, 8, lambda: data.stop, delay=5, seconds=0.0)
    assert next(iter(timed))[:2] == (10, 17)  # what is here by then
    data.asked.clear()
    data.here += 1
    assert arrivals.next_is_here()
    assert next(iter(arrivals)) == (10, 18, 15.0, 22.0)  # the stamps are the labels'
    assert data.asked == [23]
    data.here = data.stop = 30  # at the end all have their labels
    assert list(arrivals) == [(18, 26, 23.0, 29.0), (26, 30, 29.0, 29.0)]
    assert max(data.asked) == 30
    recorded = LiveArrivals(10, Came(40), 8, lambda: END, delay=5, recorded=[13])
    assert next(iter(recorded))[:2] == (10, 13)
    assert recorded._data.asked == [18]  # its step scores what comes up to there


def test_the_stream_that_goes_on_behind_a_delay_is_met(tmp_path, monkeypatch):
    """A run that ended, its last labels handed over, goes on with the samples that came since."""
    settings, asked, wait = {"label_delay": 20}, threading.Event(), LiveData.wait

    def noted(self, stop, seconds=None):
        if stop > 64:
            asked.set()
        return wait(self, stop, seconds)

    def late(held, last):
        for i, row in enumerate(rows(120)):
            if i == 64:
                asked.wait(100)
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(LiveData, "wait", noted)
        go(tmp_path, late, **settings)
    again = go(tmp_path, held_on(rows(187)), **settings)
    assert again.samples == 123
    assert [r["position"] for r in metrics(tmp_path)][-1] == 187


def test_a_run_without_a_folder_leaves_nothing_and_forgets_as_it_goes(tmp_path, monkeypatch):
    from cdl_jax.data import spool

    monkeypatch.setattr(spool, "_SEGMENT_ROWS", 16)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen, forget = [], Spool.forget

    def noted(self, before, *args, **options):
        forget(self, before, *args, **options)
        seen.append(len(list(tmp_path.glob("cdl_jax-*/samples/0*"))))

    monkeypatch.setattr(Spool, "forget", noted)
    source = held_on([row for _ in range(4) for row in rows(200)])
    settings = {"history": "window", "history_size": 32, "run": None, "log": None, "trigger": 16}
    summary = go(tmp_path, source, **settings)
    assert summary.samples == 736
    assert len(seen) > 10  # the source gave all at once
    assert seen[-1] < seen[0] // 3
    assert list(tmp_path.glob("cdl_jax-*")) == []
    with pytest.raises(DataError, match="ended after 30 samples"):
        go(tmp_path, held_on(rows(30)), **settings)
    assert list(tmp_path.glob("cdl_jax-*")) == []


def test_what_a_built_in_model_cannot_take_is_said(tmp_path):
    def refused(words, error=ConfigError, **fields):
        np.savez(tmp_path / "d.npz", **{"label": LABEL, **fields})
        with pytest.raises(error, match=words):
            go(tmp_path, dataset=f"numpy:{tmp_path}/d.npz", model=model)

    gray = np.zeros((200, 28, 28), np.uint8)
    model = "lenet5"
    refused(r"takes images \[height, width, channels\].*but x of numpy is \[28, 28\]; resh", x=gray)
    refused(r"x of numpy is \[6\]; reshape it, or give --model mlp", x=X)
    refused("from 12 pixels a side", x=gray[:, :11, :11, None])
    model = "mlp"
    refused("labels up to 1048578, but model mlp takes up to 1048575", x=X, label=LABEL + (1 << 20))
    huge = np.where(np.arange(200) == 150, 1 << 40, LABEL)
    refused("labels up to 1099511627776, but", x=X, label=huge)
    odd = np.where(np.arange(200)[:, None] == 150, np.nan, X)
    refused("sample 150 of numpy has a NaN or an infinity in x", DataError, x=odd)


def test_a_refused_sample_does_not_block_the_run(tmp_path):
    some = rows(120)
    some[100] = {"x": X[100], "label": 9}
    with pytest.raises(DataError, match="sample 100 of iterator has label 9, but the run's are 0"):
        go(tmp_path, held_on(some))
    assert metrics(tmp_path)[-1]["position"] == 96  # what came before was trained on
    some[100] = {"x": np.full(6, np.inf, np.float32), "label": 0}
    with pytest.raises(DataError, match="sample 100 of iterator has a NaN or an infinity in x"):
        go(tmp_path, held_on(some))
    some[100] = {"x": X[100], "label": 0}
    assert go(tmp_path, held_on(some)).samples == 56


def test_a_source_that_is_no_function_is_said(tmp_path):
    with pytest.raises(ConfigError, match="the source is a list_iterator; give a function"):
        go(tmp_path, iter(rows(100)))
    floats = [{"x": X[i], "label": float(LABEL[i])} for i in range(100)]
    words = r"integer labels from 0, but iterator has label float32\[\].*with a new --run"
    for classes in (0, 3):
        with pytest.raises(ConfigError, match=words):
            go(tmp_path / str(classes), held_on(floats), classes=classes)
    assert json.loads((tmp_path / "0" / "run" / "samples" / "about.json").read_text())
