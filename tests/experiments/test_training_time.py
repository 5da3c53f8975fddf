import itertools
import json
import types

import jax
import numpy as np
import pytest

from cdl_jax.data import load
from experiments import cells, training_time
from experiments.training_time import Pace, Stream


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training_time.time, "perf_counter", lambda: now[0])
    return now


def test_streams_have_their_turns_within_a_retraining_at_their_own_cost(clock):
    order = []

    def step(name):
        clock[0] += 1
        order.append(name)
        return np.zeros(())

    def take(samples):
        clock[0] += 5
        order.append(samples)

    stream = types.SimpleNamespace(take=take)
    pace = Pace(step, 25, [stream, stream])
    whole = training_time.timed(lambda: [pace.step("step") for _ in range(25)])
    assert order.count(1000) == 2 * 10  # ten turns of two
    assert sum(x for x in order if x != "step") == 2 * training_time.SEGMENT
    assert (whole, pace.elsewhere) == (25 + 20 * 5, 20 * 5)
    runs = [len(list(some)) for name, some in itertools.groupby(order) if name == "step"]
    assert max(runs) == 3  # the turns are spread


def stream(trigger):
    """A stream whose steps say which samples they take."""
    taken = []
    out = Stream.__new__(Stream)
    out.config = types.SimpleNamespace(trigger=trigger)
    out.feed = types.SimpleNamespace(batch=lambda arrived, *_: arrived)
    out.steps = types.SimpleNamespace(
        step=lambda state, arrived: (taken.append((arrived.start, arrived.stop)), None)
    )
    out.state, out.seconds, out.version, out.position, out.due = None, 0.0, 0, 10_000, 10_000
    return out, taken


@pytest.mark.parametrize("trigger", [8, 64])
def test_only_the_last_step_is_short_however_the_turns_fall(trigger):
    out, taken = stream(trigger)
    for _ in range(50):
        out.take(1000)
    out.take(0, last=True)
    assert [first for first, _ in taken] == list(range(10_000, 60_000, trigger))
    assert [stop for _, stop in taken] == [*range(10_000 + trigger, 60_000, trigger), 60_000]
    assert out.version == len(taken) == -(-50_000 // trigger)  # the grid's number


def test_nothing_is_compiled_while_a_retraining_is_timed(monkeypatch):
    programs, fit_step, timed = [], training_time.fit_step, training_time.timed

    def seen(*inputs):
        programs.append(fit_step(*inputs))
        return programs[-1]

    def watched(work):
        before = programs[-1]._cache_size()
        seconds = timed(work)
        assert programs[-1]._cache_size() == before
        return seconds

    monkeypatch.setattr(training_time, "load", lambda name: load("digits"))
    monkeypatch.setattr(training_time, "fit_step", seen)
    monkeypatch.setattr(training_time, "timed", watched)
    monkeypatch.setattr(training_time, "CELLS", ())
    monkeypatch.setattr(training_time, "SEGMENT", 60)
    monkeypatch.setitem(cells.PROFILES, ("mnist", "full"), {"initial_samples": 300, "epochs": 1})
    with jax.numpy_dtype_promotion("standard"):
        retraining, rows = training_time.measure(0, 2)
    assert (retraining["samples"], retraining["steps"], rows) == ([300, 360], [3, 3], [])


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Seeds that were measured, and a file of seeds 0 and 1 by another method."""
    seeds = []

    def measure(seed, segments):
        seeds.append(seed)
        return {"seed": seed, "samples": [10] * segments}, [{"seed": seed}]

    monkeypatch.setattr(training_time, "measure", measure)
    monkeypatch.setattr(training_time, "origin", str)
    old = {"cells": [{"seed": 0}, {"seed": 1}], "retraining": [{"seed": 0}, {"seed": 1}]}
    (tmp_path / "training_time.json").write_text(json.dumps(old))
    return seeds


def test_seeds_of_another_method_are_measured_again(measured, tmp_path, capsys):
    options = training_time.Options(seeds=(0, 1), results=str(tmp_path))
    assert training_time.main(options) == 0
    rows = json.loads((tmp_path / "training_time.json").read_text())["cells"]
    assert (measured, [(r["seed"], r["method"]) for r in rows]) == (
        [0, 1], [(0, training_time.METHOD), (1, training_time.METHOD)]
    )  # fmt: skip
    capsys.readouterr()
    assert training_time.main(options) == 0
    assert (len(measured), capsys.readouterr().out) == (
        2, f"experiments: nothing is missing: {tmp_path}/training_time.json has the seeds 0, 1\n"
    )  # fmt: skip


def test_a_shorter_stream_is_none_of_the_file_s(measured, tmp_path, capsys):
    options = training_time.Options(seeds=(0,), results=str(tmp_path))
    assert training_time.main(options) == 0
    shorter = training_time.Options(seeds=(0,), segments=1, results=str(tmp_path))
    assert training_time.main(shorter) == 2
    assert "training_time.json is of 5 segments, not 1; give that" in capsys.readouterr().err
