"""One model on several devices and in several processes."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from cdl_jax.deploy import Replica, open_log
from cdl_jax.errors import CheckpointError, ConfigError, TrainingError
from cdl_jax.train import TrainConfig
from cdl_jax.train.arrival import Trigger
from cdl_jax.train.cluster import Cluster
from tests.train import small

QUICK = {
    "initial_samples": 128, "epochs": 1, "limit": 64, "trigger": 8, "batch_size": 32,
    "density": 0.01, "snapshot_every": 4, "digest_every": 2, "checkpoint_every": 3,
}  # fmt: skip
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
    ],
)
def test_what_cannot_be_is_said(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        go(tmp_path, **changes)


def two_processes(path, **changes):
    """The summaries of both processes of a run."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = {**QUICK, **changes, "coordinator": f"127.0.0.1:{port}", "processes": 2}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    places = [f"--log={path}/log", f"--run={path}/run"]
    command = [sys.executable, "-m", "cdl_jax.cli", "train", *words, *places]
    started = [
        subprocess.Popen(
            [*command, f"--process-id={i}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip
    try:
        out = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
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
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["program"] | {"devices": 2, "processes": 2} == about["program"]


def test_the_settings_of_the_cluster_are_no_part_of_a_runs():
    plain = TrainConfig().checked().bits_depend_on()
    changes = {"devices": 2, "processes": 2, "coordinator": "h:1", "process_id": 1}
    assert dataclasses.replace(TrainConfig(), **changes).checked().bits_depend_on() == plain
