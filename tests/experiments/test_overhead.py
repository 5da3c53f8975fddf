import jax
import pytest

from cdl_jax.train import TrainConfig
from experiments import overhead


def test_a_part_inside_another_counts_for_itself_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    clock = overhead.Clock()
    inner = clock.around(passes, "inner")

    def work():
        passes(1)
        inner(2)

    clock.around(work, "outer")()
    passes(4)
    clock.version_ends()
    assert clock.versions == [{"inner": 2, "outer": 1, "loop": 4, "total": 7}]


@pytest.fixture
def config(tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        yield TrainConfig(
            dataset="digits", initial_samples=128, epochs=1, limit=8 * 30, batch_size=32,
            initial=str(tmp_path / "initial"),
        ).checked()  # fmt: skip


def test_every_part_of_the_real_loop_is_timed(config, monkeypatch):
    monkeypatch.setattr(overhead, "WARM_UP", 9)
    monkeypatch.setattr(overhead, "FEW", 2)
    rows = overhead.in_the_loop(config)
    assert len(rows) == 20
    assert all(set(overhead.HOST) | {"step"} <= set(row) for row in rows)
    bare = overhead.Bare(config).times(2)
    found = overhead.summary(rows, bare)
    parts = found["parts, ms"]
    assert found["host, ms"] == pytest.approx(sum(parts[n] for n in overhead.HOST), abs=1e-3)
    assert found["host / step"] == pytest.approx(
        found["host, ms"] / found["step alone, ms"], rel=0.01
    )
    profile = overhead.profile(config, rows=5)
    assert len(profile) == 5
    assert {"function", "calls", "own_ms"} <= set(profile[0])
