"""The benchmarks' own machinery: columns, rounds, and files that keep what was not asked for."""

import json

import jax
import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import extra, selection, sparse_step, timing

NATIVE = pytest.importorskip("cdl_jax.native._kernels")


@pytest.mark.parametrize(("backend", "native"), [("cpu", True), ("gpu", False)])
def test_the_kernels_are_a_column_on_a_cpu_alone(monkeypatch, backend, native):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = jax.numpy.ones(10)
    assert ("native" in selection.select_columns(x, 2)) is native
    assert ("native" in selection.finite_columns(x)) is native


def test_a_slow_column_runs_in_few_rounds():
    calls = {"add": 0, "slow": 0}

    def column(name):
        def run():
            calls[name] += 1

        return run

    times = timing.interleave({n: column(n) for n in calls}, 9, slow={"slow"})
    assert calls == {"add": 11, "slow": 2 + timing.FEW}
    assert timing.rounds(times) == {"add": 9, "slow": timing.FEW}
    assert np.isfinite(timing.quartiles(times)["slow"]).all()


def test_the_interval_holds_the_median_of_most_draws():
    rng = np.random.default_rng(0)
    found = [timing.median_interval(rng.normal(3, 1, 60)) for _ in range(100)]
    assert sum(low <= 3 <= high for _, low, high in found) >= 85


def test_rows_of_other_models_stay(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"model": m, "day": 1} for m in ("lenet5", "resnet18")]))
    new = [{"model": "resnet18", "day": 2}]
    both = [{"model": "lenet5", "day": 1}, {"model": "resnet18", "day": 2}]
    assert bench.merged(path, new, ["resnet18"]) == both
    assert bench.merged(path, new, bench.MODELS) == new
    one_tensor = {"model": None, "day": 2}
    assert bench.merged(path, [*new, one_tensor], ["resnet18"]) == [one_tensor, *both]


def test_a_sparse_step_s_row_has_each_density_with_its_interval():
    with jax.numpy_dtype_promotion("standard"):  # optax's amsgrad outside a chain of ours
        row = sparse_step.measure("lenet5", 2, 2, "tensor")
    for density in ("0.01", "0.001", "0.0001"):
        for figure in ("ratio", "extra_ms", "passes_after_0.3_ms"):
            middle, low, high = row[density][figure]
            assert low <= middle <= high
    assert row["ms"]["dense"][1] > 0
    assert row["versions"]["jax"] == jax.__version__


def test_the_extra_is_that_of_steps_with_the_given_gradients():
    with jax.numpy_dtype_promotion("standard"):
        row = extra.measure("lenet5", 2, "tensor")
        params, model_state, (batch, _) = extra.begin("lenet5")
        got = jax.grad(extra.given, has_aux=True)(params, model_state, batch, None)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), got[0], batch["gradients"]))
    assert row["parameters"] == 61_706
    for density in ("0.01", "0.001", "0.0001"):
        middle, low, high = row[density]["passes_after_0.3_ms"]
        assert low <= middle <= high
