"""A run that starts from a file of weights: they are what is deployed, and part of what it is."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from cdl_jax.deploy import open_log
from cdl_jax.errors import CheckpointError, ConfigError
from cdl_jax.train import TrainConfig, run
from cdl_jax.wire import decode_snapshot

START = TrainConfig(
    initial_samples=128, epochs=0, limit=24, trigger=8, batch_size=32, density=0.01,
    snapshot_every=4, digest_every=0,
)  # fmt: skip
SHAPES = {
    "conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 400), "fc2": (84, 120),
    "fc3": (10, 84),
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("standard_promotion")


def weights(path, seed=0):
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in SHAPES.items():
        tensors[f"{name}.weight"] = rng.normal(0, 0.1, shape).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
    safetensors.numpy.save_file(tensors, path)
    return tensors


def go(path, weights, **changes):
    places = {"log": str(path / "log"), "run": str(path / "run"), "init_weights": str(weights)}
    return run(dataclasses.replace(START, **{**places, **changes}).checked())


def test_version_0_is_the_file_and_the_log_holds_its_digest(tmp_path):
    tensors = weights(tmp_path / "a")
    go(tmp_path, tmp_path / "a")
    log = open_log(str(tmp_path / "log"))
    snapshot = decode_snapshot(log.read_snapshot(0))
    for path, value in (
        ("params/fc2/kernel", tensors["fc2.weight"].T),
        ("params/conv1/bias", tensors["conv1.bias"]),
    ):
        np.testing.assert_array_equal(snapshot.tensors[path], value)

    (tmp_path / "a").rename(tmp_path / "b")  # the content counts, not the place
    go(tmp_path, tmp_path / "b", limit=40)
    assert log.head() == 5
    weights(tmp_path / "b", seed=1)
    with pytest.raises(CheckpointError, match="another configuration .init_weights is"):
        go(tmp_path, tmp_path / "b", limit=48)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        go(tmp_path, tmp_path / "none", limit=48)


def test_initial_training_starts_from_the_file(tmp_path):
    weights(tmp_path / "a")
    runs = [(tmp_path / "a", 0), (tmp_path / "a", 1), (None, 1)]
    places = {"log": None, "run": None, "limit": 8}
    digests = {
        run(dataclasses.replace(START, init_weights=w and str(w), epochs=e, **places).checked())
        .digest
        for w, e in runs
    }  # fmt: skip
    assert len(digests) == 3
