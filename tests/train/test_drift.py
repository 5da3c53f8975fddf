import functools
import types

import numpy as np
import pytest

from cdl_jax.errors import ConfigError
from cdl_jax.train import TrainConfig, drift
from cdl_jax.train.drift import DETECTORS, AccuracyFall, Watch
from tests.train import small

QUICK = TrainConfig(
    initial_samples=128, epochs=1, limit=88, trigger=8, batch_size=32, density=0.01,
    snapshot_every=1000, digest_every=0, checkpoint_every=0, model="mlp",
)  # fmt: skip
go = functools.partial(small.go, QUICK)


class Finds:
    """A detector of drifts at the versions that are given."""

    def __init__(self, *versions):
        self._versions, self._count = versions, 0

    def update(self, value):
        del value
        self._count += 1
        return self._count in self._versions


def records(values, samples=8):
    """Lines of metrics in which the accuracy is as given, and the loss falls as it rises."""
    for version, value in enumerate(values, 1):
        correct = round(float(value) * samples)
        yield {
            "version": version, "position": 100 + samples * version, "samples": samples,
            "correct": correct, "prequential_loss": 3 * (1 - correct / samples),
            "nonfinite_losses": 0,
        }  # fmt: skip


def sudden(at=300, length=500):
    rng = np.random.default_rng(0)
    means = np.where(np.arange(length) < at, 0.95, 0.4)
    return rng.binomial(8, means) / 8


@pytest.mark.parametrize("name", DETECTORS)
def test_a_sudden_drift_is_found_soon_and_nothing_before(name):
    if name != "accuracy":
        pytest.importorskip("river")
    watch = Watch(TrainConfig(on_drift="share", detector=name))
    for record in records(sudden()):
        watch.update(record)
    assert watch.found
    assert 300 < watch.found[0].version < 330
    calm = Watch(TrainConfig(on_drift="share", detector=name))
    assert not any(calm.update(record) for record in records(sudden(at=500)))


def test_a_better_level_is_no_drift():
    pytest.importorskip("river")
    watch = Watch(TrainConfig(on_drift="share", detector="adwin"))
    assert not any(watch.update(record) for record in records(sudden()[::-1]))


def test_rivers_detectors_are_rivers():
    drift = pytest.importorskip("river.drift")
    theirs, mine = drift.PageHinkley(threshold=5.0, mode="up"), []
    for record in records(sudden(length=900) + 0.0):
        theirs.update(record["prequential_loss"])
        mine += [record["version"]] * theirs.drift_detected
    watch = Watch(TrainConfig(on_drift="share", detector="page_hinkley"))
    for record in records(sudden(length=900)):
        watch.update(record)
    assert [x.version for x in watch.found] == mine


def test_an_answer_begins_two_versions_later_and_lasts_as_long_as_it_should():
    config = TrainConfig(on_drift="share+reset", detector="accuracy", drift_samples=24)
    watch = Watch(config)
    found = next(r for r in records(sudden()) if watch.update(r))
    version, position = found["version"], found["position"]
    answers = [watch.answers("share", version + i, position + 8 * (i - 1)) for i in range(1, 6)]
    assert answers == [False, True, True, False, False]
    assert not watch.answers("density", version + 2, position + 8)
    assert [watch.resets(version + i) for i in (1, 2, 3)] == [False, True, False]


def test_a_step_depends_on_no_version_but_those_two_before_it(monkeypatch):
    """Findings while an earlier one is answered: as the loop is pipelined, or is not."""
    monkeypatch.setattr(drift, "detector", lambda name, threshold: Finds(3, 6, 7, 15))
    lines, seen = list(records(np.ones(24))), []
    for ahead in (1, 2):
        watch = Watch(TrainConfig(on_drift="density+reset", drift_samples=40))
        seen.append([])
        for version in range(1, 25):
            for line in lines[max(0, version - ahead - 1) : version - ahead]:
                watch.update(line)
            answers = watch.answers("density", version, 100 + 8 * (version - 1))
            seen[-1].append((answers, watch.resets(version)))
    assert seen[0] == seen[1]
    assert [v for v, (answers, _) in enumerate(seen[0], 1) if answers] == [
        *range(5, 13), *range(17, 21)
    ]  # fmt: skip
    assert [v for v, (_, resets) in enumerate(seen[0], 1) if resets] == [5, 8, 9, 17]


@pytest.mark.usefixtures("standard_promotion")
def test_overlapping_drifts_make_one_log_however_the_run_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "detector", lambda name, threshold: Finds(3, 5))
    settings = {
        "on_drift": "density+reset+trigger", "drift_samples": 24, "initial": str(tmp_path),
    }  # fmt: skip

    def blobs(name, *, crash=None, **changes):
        path = tmp_path / name
        if name != "plain":
            small.same_lineage(tmp_path / "plain", path)
        if crash:
            small.crash(monkeypatch, crash, lambda: go(path, **settings, **changes))
        go(path, **settings, **changes)
        return {x.name: x.read_bytes() for x in (path / "log" / "updates").iterdir()}

    plain = blobs("plain")
    rows = small.metrics(tmp_path / "plain")
    assert [row["version"] for row in rows if row.get("drift")] == [3, 8]
    assert [row["samples"] for row in rows] == [8] * 4 + [2] * 16 + [8] * 3
    dense = [row["version"] for row in rows if row["entries"] > 2 * rows[0]["entries"]]
    assert dense == list(range(5, 21))
    assert blobs("digests", digest_every=1) == plain
    assert blobs("paced", crash=9, pace=200.0, checkpoint_every=5) == plain


def test_nothing_is_watched_unless_asked():
    watch = Watch(TrainConfig())
    assert not any(watch.update(record) for record in records(sudden()))


def test_a_fall_needs_thirty_versions_and_starts_anew():
    fall = AccuracyFall(0.1)
    assert not any(fall.update(x) for x in [1.0] * 5 + [0.0] * 20)
    fall = AccuracyFall(0.1)
    assert [i for i, x in enumerate([1.0] * 60 + [0.0] * 80) if fall.update(x)] == [61]


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="on_drift is 'panic'; give one of share, density"):
        TrainConfig(on_drift="share+panic").checked()
    with pytest.raises(ConfigError, match="drift_share is 0; give a share"):
        TrainConfig(drift_share=0).checked()
    with pytest.raises(ConfigError, match="trigger_seconds needs --run"):
        TrainConfig(trigger_seconds=1.0, log="x").checked()
    with pytest.raises(ConfigError, match="new_lineage needs --run"):
        TrainConfig(new_lineage=True).checked()


@pytest.mark.parametrize(
    ("detector", "threshold", "range_"),
    [("adwin", -1.0, r"in \(0, 1\)"), ("adwin", 0.0, "in"), ("adwin", float("nan"), "in"),
     ("adwin", 5.0, "in"), ("page_hinkley", 0.0, "above 0"),
     ("page_hinkley", float("inf"), "above"),
     ("accuracy", 2.0, "in"), ("accuracy", float("nan"), "in"), ("accuracy", -0.1, "in")],
)  # fmt: skip
def test_a_threshold_at_which_nothing_is_found_is_refused(detector, threshold, range_):
    with pytest.raises(ConfigError, match=f"is {threshold}; give a number {range_}.* {detector}"):
        TrainConfig(detector=detector, drift_threshold=threshold).checked()
    TrainConfig(detector=detector, drift_threshold=DETECTORS[detector]).checked()


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"strategy": "online", "on_drift": "share"}, "share is of no use: online trains on what"),
     ({"strategy": "online", "on_drift": "reset+window"}, "window is of no use: online"),
     ({"strategy": "frozen", "on_drift": "reset"}, "reset is of no use: frozen takes no steps"),
     ({"strategy": "proactive", "on_drift": "density"}, "proactive sends dense updates"),
     ({"compressor": "quantize", "on_drift": "share+density"}, "quantize sends every entry"),
     ({"density": 0.1, "on_drift": "density"}, "is 0.1, and it is .* already; give another, or"),
     ({"include_new": False, "on_drift": "share"}, "include_new is off"),
     ({"strategy": "online", "on_drift": "trigger"}, "online would take smaller batches"),
     ({"trigger_seconds": 1.0, "on_drift": "trigger"}, "trigger is of no use: the clock triggers"),
     ({"drift_trigger": 8, "on_drift": "trigger"}, "r is 8, and 8 new .* already; give fewer, or"),
     ({"new_share": 0.5, "on_drift": "share"}, "of batch_size 128 is no more than the 64")],
)  # fmt: skip
def test_an_answer_that_would_change_no_step_is_refused(settings, why):
    with pytest.raises(ConfigError, match=why):
        TrainConfig(**settings).checked()
    TrainConfig(**settings | {"on_drift": ""}).checked()


def test_the_detector_sees_whole_triggers_where_an_answer_cuts_them_smaller(monkeypatch):
    told = []
    finds = types.SimpleNamespace(update=lambda value: bool(told.append(value)) or len(told) == 2)
    monkeypatch.setattr(drift, "detector", lambda name, threshold: finds)
    settings = {"trigger": 8, "drift_samples": 24, "detector": "accuracy"}
    watch, position, sizes = Watch(TrainConfig(on_drift="trigger", **settings)), 100, []
    for version in range(1, 16):
        sizes.append(2 if watch.answers("trigger", version, position) else 8)
        position += sizes[-1]
        line = {"version": version, "position": position, "samples": sizes[-1],
                "correct": 1 if version % 2 else 0, "prequential_loss": None,
                "nonfinite_losses": 2}  # fmt: skip
        watch.update(line)
    assert sizes == [8] * 3 + [2] * 8 + [8] * 4
    assert told == [1 / 8, 0, 1 / 8, 2 / 8, 2 / 8, 0, 1 / 8, 0, 1 / 8]


@pytest.mark.parametrize("name", ["adwin", "page_hinkley"])
def test_a_version_without_a_finite_loss_does_not_blind_the_detector(name):
    pytest.importorskip("river")
    watch = Watch(TrainConfig(on_drift="share", detector=name))
    lines = list(records(sudden()))
    lines[100]["prequential_loss"] = None
    assert [x["version"] for x in lines if watch.update(x)]
    assert 300 < watch.found[0].version < 330


def test_the_loss_is_the_mean_over_the_samples_whose_loss_is_finite():
    watch = Watch(TrainConfig(on_drift="trigger", trigger=16))
    told = [
        watch._value({"version": 1, "position": 0, "correct": 0, "samples": samples,
                      "nonfinite_losses": odd, "prequential_loss": loss})
        for samples, odd, loss in [(2, 0, 1.0), (2, 2, None), (4, 1, 2.0), (8, 0, 5.0)]
    ]  # fmt: skip
    assert told == [None, None, None, pytest.approx((2 * 1.0 + 3 * 2.0 + 8 * 5.0) / 13)]
    for loss in (0.1, 1 / 3, 0.7):
        line = {"version": 1, "position": 0, "correct": 0, "samples": 16, "nonfinite_losses": 3}
        assert watch._value(line | {"prequential_loss": loss}) == loss  # to the bit
