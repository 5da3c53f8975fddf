"""Drift in a run: where its settings put the change, and on data of which kinds."""

import dataclasses

import jax
import numpy as np
import pytest

from cdl_jax.errors import ConfigError
from cdl_jax.train import TrainConfig
from cdl_jax.train.inputs import described, model_for, open_data
from tests.data.test_sources import tfds_folder


def test_the_limit_of_the_run_is_where_its_drift_ends():
    config = TrainConfig(scenario="label_permutation", limit=600).checked()
    plain = open_data(dataclasses.replace(config, scenario="none"))
    changed = np.flatnonzero(open_data(config).labels != plain.labels)
    assert changed[0] == 400 + 300
    longer = dataclasses.replace(config, limit=601)
    assert longer.bits_depend_on() != config.bits_depend_on()
    assert "limit" not in dataclasses.replace(config, scenario="none").bits_depend_on()
    assert "limit" not in dataclasses.replace(config, limit=None).bits_depend_on()
    with pytest.raises(ConfigError, match=r"has 1 sample\(s\); give a larger --limit"):
        open_data(dataclasses.replace(config, limit=1))


def test_files_drift_as_well(tmp_path):
    x, label = np.random.default_rng(0).normal(size=(300, 3)), np.arange(300) % 4
    np.savez(tmp_path / "d.npz", x=x, label=label)
    config = TrainConfig(
        dataset=f"numpy:{tmp_path}/d.npz", model="mlp", initial_samples=100, limit=100,
        scenario="label_permutation",
    ).checked()  # fmt: skip
    data = open_data(config)
    assert np.flatnonzero(data.labels[:200] != label[:200]).tolist() == list(range(150, 200))
    with pytest.raises(ConfigError, match="rotation is for images"):
        open_data(dataclasses.replace(config, scenario="rotation"))


def test_a_model_fits_a_set_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    tfds_folder(tmp_path, images, [i % 5 for i in range(20)])
    config = TrainConfig(dataset="tfds:own", data_dir=str(tmp_path), initial_samples=9).checked()
    data = open_data(config)
    assert described(config, data)["inputs"]["fields"]["image"] == ["uint8", [16, 16, 3]]
    model = model_for(config, data)
    params, state = model.init_fn(jax.random.key(0), images[:1])
    assert model.predict_fn(params, state, images).shape == (20, 5)
    with pytest.raises(ConfigError, match="tfds:own needs --initial-samples"):
        TrainConfig(dataset="tfds:own").checked()
