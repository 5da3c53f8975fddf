"""One model on several devices and in several processes."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cdl_jax.deploy import Replica, open_log
from cdl_jax.errors import CheckpointError, ConfigError, TrainingError
from cdl_jax.train import TrainConfig, job
from cdl_jax.train.arrival import Trigger
from cdl_jax.train.cluster import Cluster
from cdl_jax.train.link import Link
from tests.train import small

QUICK = {
    "initial_samples": 128, "epochs": 1, "limit": 64, "trigger": 8, "batch_size": 32,
    "density": 0.01, "snapshot_every": 4, "digest_every": 2, "checkpoint_every": 3,
}  # fmt: skip
ROOT = pathlib.Path(__file__).parents[2]
go = functools.partial(small.go, TrainConfig(**QUICK))
pytestmark = pytest.mark.usefixtures("standard_promotion")


def weights(path):
    with Replica(open_log(str(path / "log"))).lease() as lease:
        tensors = jax.tree.map(np.array, lease.tree["params"])
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tensors)])


def test_eight_devices_train_what_one_does(tmp_path):
    dense = {"strategy": "proactive", "epochs": 3}
    one = go(tmp_path / "one", **dense)
    eight = go(tmp_path / "eight", devices=8, **dense)
    assert eight.full_digests == 4
    assert one.digest != eight.digest  # other sums, other bits: else nothing was shared out
    apart = np.abs(weights(tmp_path / "one") - weights(tmp_path / "eight"))
    assert apart.max() < 1e-3
    assert apart.mean() < 1e-5
    assert abs(one.loss - eight.loss) < 1e-4


@pytest.mark.usefixtures("a_drift_every_31_versions")
def test_sparse_steps_on_a_mesh_stop_and_go_on_to_the_same_bytes(tmp_path):
    settings = {"devices": 8, "on_drift": "density+reset", "detector": "accuracy", "limit": 288}
    whole = go(tmp_path / "whole", **settings)
    go(tmp_path, **settings | {"limit": 272})
    again = go(tmp_path, **settings)
    assert (again.digest, again.versions, again.drifts) == (whole.digest, 36, whole.drifts)
    assert whole.drifts == 1
    replica = Replica(open_log(str(tmp_path / "log")))
    assert replica.full_digest() == whole.digest
    with pytest.raises(CheckpointError, match=r"another program \(devices is 4 here, 8 there"):
        go(tmp_path, **settings | {"devices": 4})


def test_batches_are_sharded_where_their_size_allows():
    cluster = Cluster(8)
    assert cluster.put({"x": np.zeros((16, 3))})["x"].addressable_data(0).shape == (2, 3)
    assert cluster.put({"x": np.zeros((12, 3))})["x"].addressable_data(0).shape == (12, 3)
    tree = {"key": jax.random.key(3), "w": np.arange(4.0, dtype=np.float32)}
    there = cluster.replicate(tree)
    assert len(there["w"].sharding.device_set) == 8
    back = cluster.local(there)
    assert back["w"].tolist() == [0, 1, 2, 3]
    assert len(back["w"].sharding.device_set) == 1
    assert (jax.random.key_data(back["key"]) == jax.random.key_data(tree["key"])).all()


def test_a_single_process_leads_itself():
    cluster = Cluster()
    triggers = [Trigger(0, 8, 0.5, 1.0), Trigger(8, 9, 2.0, 2.0)]
    assert list(cluster.led(iter(triggers))) == triggers
    assert cluster.share(b"abc") == b"abc"
    cluster.check_same({"a": 1})
    cluster.check_digest(3, np.zeros(4, np.uint32))


def test_another_process_is_told_apart(monkeypatch):
    cluster = Cluster()
    monkeypatch.setattr(cluster, "_gather", lambda values: np.stack([values, values + 1]))
    with pytest.raises(TrainingError, match="process 1 holds another model .* at version 7"):
        cluster.check_digest(7, np.zeros(4, np.uint32))
    monkeypatch.setattr(cluster, "share", lambda content: b'{"seed": 1, "jax": "0"}')
    monkeypatch.setattr(cluster, "_gather", lambda values: np.array([0, 1]))
    with pytest.raises(ConfigError, match="process 1 is not like process 0: seed differ here"):
        cluster.check_same({"seed": 2, "jax": "0"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": 9}, "devices is 9, but this process has 8; JAX_NUM_CPU_DEVICES makes more"),
        ({"process_id": 1}, "process_id is 1 of 1 processes"),
        ({"processes": 2}, "processes is 2, coordinator is None"),
        ({"coordinator": "127.0.0.1:1"}, "a single one none"),
        ({"devices": 2, "strategy": "full"}, "full runs on one device"),
        ({"devices": -1}, "devices is -1; give 0 or more"),
        ({"processes": 2, "coordinator": "host"}, "coordinator is 'host'; give HOST:PORT"),
        ({"processes": 2, "coordinator": "http://host:1"}, "coordinator is 'http://host:1'; give"),
        ({"processes": 2, "coordinator": "h:99999"}, "'h:99999'; give .* port from 1 to 65535"),
        ({"processes": 2, "coordinator": "[::1]:0"}, "0'; give HOST:PORT .* port from 1 to 65535"),
        ({"devices": 8, "batch_size": 36}, "batch_size is 36, which 8 dev.* give 32 or 40, or"),
        ({"devices": 8, "strategy": "online", "trigger": 6}, "trigger is 6, .* give 8, or other"),
        ({"devices": 8, "strategy": "online", "trigger_seconds": 1.0}, "batch of another size"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        go(tmp_path, **changes)


def test_who_fails_before_its_work_tells_the_others(monkeypatch):
    told, link = [], Link(1, {})
    monkeypatch.setattr(link, "end", told.append)
    monkeypatch.setattr(Link, "meet", lambda *_: link)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="devices is 9"):
        Cluster.join("127.0.0.1:1", 2, 1, 9)

    def fails(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    words = "but JAX did not: DEADLINE_EXCEEDED; start all processes again, at another port where"
    with pytest.raises(TrainingError, match=words):
        Cluster.join("127.0.0.1:1", 2, 1, 1)
    assert [why.partition(":")[0] for why in told] == ["process 1 stopped"] * 2
    assert "devices is 9" in told[0]


@contextlib.contextmanager
def two_started(path, folders=(None, None), **changes):
    """Both processes of a run, each in a folder."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = {**QUICK, "log": path / "log", "run": path / "run", **changes}
    settings |= {"coordinator": f"127.0.0.1:{port}", "processes": 2}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    command = [sys.executable, "-m", "cdl_jax.cli", "train", *words]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [*command, f"--process-id={i}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=env, cwd=folder, text=True,
        )
        for i, folder in enumerate(folders)
    ]  # fmt: skip
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def two_processes(path, folders=(None, None), **changes):
    """The summaries of both processes of a run."""
    with two_started(path, folders, **changes) as started:
        out = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], out
    return [json.loads(stdout[stdout.index("{\n") :]) for stdout, _ in out]


def test_two_processes_train_one_model_and_one_of_them_writes(tmp_path):
    """Stopped after four versions, and begun again: process 1 gets the checkpoint from 0."""
    first = two_processes(tmp_path, limit=32)
    assert first[0]["digest"] == first[1]["digest"]
    assert (first[0]["bytes_sent"] > 0, first[1]["bytes_sent"]) == (True, 0)
    lead, other = two_processes(tmp_path)
    assert lead["digest"] == other["digest"] != first[0]["digest"]
    assert lead["versions"] == other["versions"] == 8
    assert (lead["accuracy"], lead["loss"]) == (other["accuracy"], other["loss"])
    assert lead["bytes_sent"] > other["bytes_sent"] == first[0]["bytes_sent"]
    log = open_log(str(tmp_path / "log"))
    assert log.head() == 8
    assert Replica(log).full_digest() == lead["digest"]
    go(tmp_path / "one")
    apart = np.abs(weights(tmp_path) - weights(tmp_path / "one"))
    assert np.percentile(apart, 99) < 1e-5  # what was sent in one run and not yet in the other
    assert apart.max() < 2e-2
    about = json.loads((tmp_path / "run" / "about.json").read_text())[-1]
    assert about["program"] | {"devices": 2, "processes": 2} == about["program"]


def flat(folder, **changes):
    """A run on a few features, whose programs compile in no time, and its data."""
    folder.mkdir(exist_ok=True)
    fields = {"x": np.random.default_rng(0).normal(size=(300, 4)), "label": np.arange(300) % 3}
    np.savez(folder / "d.npz", **fields, **changes)
    return {"dataset": "numpy:d.npz", "model": "mlp"}


def test_two_processes_train_densely_what_one_does(tmp_path, monkeypatch):
    dense = flat(tmp_path) | {"strategy": "proactive", "epochs": 3, "run": None}
    lead, other = two_processes(tmp_path / "two", folders=(tmp_path, tmp_path), **dense)
    monkeypatch.chdir(tmp_path)
    one = go(tmp_path / "one", **dense)
    assert lead["digest"] == other["digest"] != one.digest
    apart = np.abs(weights(tmp_path / "one") - weights(tmp_path / "two"))
    assert apart.max() < 1e-3
    assert apart.mean() < 1e-5
    assert abs(one.loss - lead["loss"]) < 1e-4


def test_hosts_with_other_data_are_told_before_they_train(tmp_path):
    same = flat(tmp_path / "a")
    flat(tmp_path / "b")
    labels = np.arange(300) % 3
    labels[190] = 2  # of 192 that the run takes
    x = np.load(tmp_path / "a" / "d.npz")["x"]
    np.savez(tmp_path / "b" / "d.npz", x=x, label=labels)
    with two_started(tmp_path, (tmp_path / "a", tmp_path / "b"), **same) as started:
        errors = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1]
    assert "cdl-jax: process 1 is not like process 0; start every process with the s" in errors[0]
    assert "process 0: content of the data, labels of the data differ here; start" in errors[1]
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("dead", [0, 1])
def test_who_is_left_says_which_process_is_gone(tmp_path, dead):
    settings = flat(tmp_path) | {"pace": 4, "trigger": 4}  # longer than the test
    with two_started(tmp_path, (tmp_path, tmp_path), **settings) as started:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert [process.poll() for process in started] == [None, None]
            time.sleep(0.1)
        started[dead].kill()
        error = started[1 - dead].communicate(timeout=60)[1]
    assert started[1 - dead].returncode == 1
    assert error.endswith(
        f"cdl-jax: process {dead} is gone; start all processes again; with --run they go on from "
        "the newest checkpoint\n"
    )
    if dead == 1:
        with open_log(str(tmp_path / "log")).claim():
            pass  # its owner let it go


def test_the_settings_of_the_cluster_are_no_part_of_a_runs():
    plain = TrainConfig().checked().bits_depend_on()
    changes = {"devices": 2, "processes": 2, "coordinator": "h:1", "process_id": 1}
    assert dataclasses.replace(TrainConfig(), **changes).checked().bits_depend_on() == plain


def test_hosts_may_have_the_same_initial_weights_in_other_places(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    one, same, other = (
        job._alike(TrainConfig(init_weights=str(tmp_path / name))) for name in "abc"
    )
    assert one == same != other
