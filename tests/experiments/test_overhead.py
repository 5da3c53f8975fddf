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
    clock.version_ends(lambda: passes(100))
    passes(3)
    clock.version_ends(lambda: None)
    first = {"inner": 2, "outer": 1, "loop": 4, "total": 7}
    assert clock.versions == [first, {"loop": 3, "total": 3}]


@pytest.fixture
def config(tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        yield TrainConfig(
            dataset="digits", initial_samples=128, epochs=1, limit=8 * 30, batch_size=32,
            initial=str(tmp_path / "initial"),
        ).checked()  # fmt: skip


def test_every_part_of_the_real_loop_is_timed(config, monkeypatch):
    monkeypatch.setattr(overhead, "BLOCK", 10)
    monkeypatch.setattr(overhead, "FEW", 2)
    bare = overhead.Bare(config)
    blocks = overhead.in_the_loop(config, bare, overhead.PLACES)
    assert [len(block.rows) for block in blocks] == [7, 6]
    rows = [row for block in blocks for row in block.rows]
    assert all(set(overhead.HOST) | {"step"} <= set(row) for row in rows)
    assert all(block.step > 0 and block.program > 0 for block in blocks)
    without = overhead.in_the_loop(config, bare)
    assert [set(row) for row in without[0].rows] == [{"loop", "total"}] * 7
    found = overhead.summary(blocks, without)
    parts = found["parts, ms"]
    assert found["host, ms"] == pytest.approx(sum(parts[n] for n in overhead.HOST), abs=1e-3)
    assert found["host / step"] == pytest.approx(
        found["host, ms"] / found["step alone, ms"], rel=0.01
    )
    profile = overhead.profile(config, rows=5)
    assert len(profile) == 5
    assert {"function", "calls", "own_ms"} <= set(profile[0])


def test_what_is_seen_is_a_share_of_the_step_beside_it():
    block = overhead.Block([{"total": 5.0}, {"total": 5.0}, {"total": 8.0}], 2.0, 3.0)
    slow = overhead.Block([{"total": 50.0}, {"total": 50.0}, {"total": 80.0}], 20.0, 30.0)
    found = overhead.summary([slow], [block, slow])
    assert found["seen / step"] == [1.0, 1.0, 1.0]
    assert found["seen / step, of means"] == [1.5, 1.5, 1.5]
