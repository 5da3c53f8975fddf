import jax
import pytest

from experiments import checkpoint_cost


@pytest.fixture
def options(tmp_path):
    cache = jax.config.values["jax_compilation_cache_dir"]
    with jax.numpy_dtype_promotion("standard"):
        yield checkpoint_cost.Options(model="lenet5", saves=2, folder=str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", cache)


def test_what_was_saved_is_restored(options):
    saved = checkpoint_cost.save_large(options)
    waits, wholes = saved["the training waits, s"], saved["until it is written, s"]
    assert len(waits) == len(wholes) == 2
    assert all(0 < wait <= whole for wait, whole in zip(waits, wholes, strict=True))
    restored = checkpoint_cost.restore_large(options)
    assert restored["MB"] > 1
    assert restored["restore, s"] < 10


def test_costs_are_paired(options, monkeypatch):
    seconds = {0: 10.0, 25: 12.0}
    monkeypatch.setattr(
        checkpoint_cost, "_child",
        lambda options, only, *, every, **_: {"seconds": seconds[every], "versions": 6250},
    )  # fmt: skip
    found = checkpoint_cost.training(options)
    assert found["cost, %"] == [20.0] * 5
    assert found["cost of one every 500, %, mean and 95% interval"] == [1.0, 0.0]
