import numpy as np
import pytest

from cdl_jax.data import from_arrays
from cdl_jax.errors import ConfigError
from cdl_jax.train import TrainConfig
from cdl_jax.train.arrival import Trigger
from cdl_jax.train.feed import Feed


def make(**changes):
    images = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1)
    data = from_arrays(images, np.arange(200) % 4, mean=(0.5,), std=(0.5,))
    settings = {"initial_samples": 100, "batch_size": 16, "trigger": 4, **changes}
    return Feed(TrainConfig(**settings).checked(), data)


def positions(feed, trigger, **options):
    batch = feed.batch(trigger, 7, **{"share": 0.0, "window": None, **options})
    return batch["image"].reshape(-1).tolist()


def test_a_batch_is_history_then_the_new_samples():
    got = positions(make(), Trigger(100, 104, 0.0, 0.0))
    assert len(set(got)) == 16
    assert got[12:] == [100, 101, 102, 103]
    assert max(got[:12]) < 100


@pytest.mark.parametrize(("share", "recent"), [(0.1, 4), (0.5, 8), (1.0, 16)])
def test_a_share_of_the_most_recent_samples(share, recent):
    got = positions(make(), Trigger(100, 104, 0.0, 0.0), share=share)
    assert len(set(got)) == 16
    assert got[16 - recent :] == list(range(104 - recent, 104))
    assert all(p < 104 - recent for p in got[: 16 - recent])


def test_a_window_shortens_the_history():
    got = positions(make(history="balanced"), Trigger(100, 104, 0.0, 0.0), window=20)
    assert min(got) >= 80
    assert len(set(got)) == 16


def test_without_the_new_ones_as_such_the_draw_may_hold_them():
    feed = make(include_new=False, batch_size=104)
    assert sorted(positions(feed, Trigger(100, 104, 0.0, 0.0))) == list(range(104))


def test_online_batches_are_what_arrived():
    assert positions(make(strategy="online"), Trigger(100, 103, 0.0, 0.0)) == [100, 101, 102]


def test_samples_are_padded_to_one_size():
    batch = make().read(198, 200, size=4)
    assert batch["image"].reshape(-1).tolist() == [198, 199, 199, 199]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"new_share": 1.0, "include_new": False}, "new_share 1.0 would .*: include_new is off"),
     ({"history": "balanced", "strategy": "online"}, "nothing: strategy online draws no history"),
     ({"new_share": 0.5, "strategy": "online"}, "nothing: strategy online draws no history"),
     ({"new_share": 0.5, "strategy": "full"}, "nothing: strategy full draws no history")],
)  # fmt: skip
def test_a_share_that_would_change_no_batch_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        make(**settings)


@pytest.mark.parametrize("settings", [{"history": "window"}, {"history": "reservoir"}])
def test_a_history_that_cannot_fill_a_batch_is_refused(settings):
    with pytest.raises(ConfigError, match=r"history_size is 15, too few .* give 16 \(batch_size\)"):
        make(**settings, history_size=15)
    feed = make(**settings, history_size=16)
    assert len(positions(feed, Trigger(100, 104, 0.0, 0.0))) == 16
    assert len(positions(feed, Trigger(104, 105, 0.0, 0.0))) == 16  # a stream's last, say
    assert len(positions(feed, Trigger(105, 109, 0.0, 0.0), share=0.5)) == 16
    make(history_size=15)  # a uniform history has no size
    with pytest.raises(ConfigError, match="drift_window is 15, too few"):
        make(on_drift="window", drift_window=15)


def test_a_clock_gives_online_no_batches():
    with pytest.raises(ConfigError, match="trigger_seconds would give online a batch of another"):
        make(strategy="online", trigger_seconds=1.0)


def test_what_draws_no_history_needs_none_of_it():
    assert make(strategy="online").oldest(150) == 150 - 16
    assert make().oldest(150) == 0
