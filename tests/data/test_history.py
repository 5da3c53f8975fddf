import numpy as np
import pytest

from cdl_jax.data import (
    POLICIES,
    BalancedHistory,
    ExponentialHistory,
    InverseUseHistory,
    ReservoirHistory,
    UniformHistory,
    WindowHistory,
    history,
)
from cdl_jax.data.draws import by_weight, generator_of
from cdl_jax.data.history import carried
from cdl_jax.errors import ConfigError

LABELS = np.arange(1000) % 3


def grown(policy, labels=LABELS, **options):
    sampler = policy(3, **options)
    sampler.join(labels)
    return sampler


def frequencies(make, available, size, draws):
    counts = np.zeros(available)
    sampler = make()
    for step in range(draws):
        counts[sampler.draw(step, available, size)] += 1
    return counts


def assert_binomial(counts, draws, probability):
    """Within 5 standard deviations of draws * probability, entry by entry."""
    spread = np.sqrt(draws * probability * (1 - probability)) + 1e-9
    assert (np.abs(counts - draws * probability) <= 5 * spread).all()


@pytest.mark.parametrize("name", POLICIES)
def test_draws_are_distinct_in_range_and_resume_where_they_stood(name):
    straight, first = (history(name, seed=3, size=200) for _ in range(2))
    for sampler in (straight, first):
        sampler.join(LABELS)
    out = [straight.draw(step, 1000, 120) for step in range(8)]
    for draw in out:
        assert len(set(draw.tolist())) == 120
        assert draw.min() >= 0
        assert draw.max() < 1000
    assert not np.array_equal(out[0], out[1])
    for step in range(4):
        first.draw(step, 1000, 120)
    resumed = history(name, seed=3, size=200)
    resumed.restore(first.state())
    resumed.join(np.array([1, 2]))
    straight_two = history(name, seed=3, size=200)
    straight_two.join(LABELS)
    for step in range(4):
        straight_two.draw(step, 1000, 120)
    straight_two.join(np.array([1, 2]))
    for step in range(4, 8):
        assert np.array_equal(resumed.draw(step, 1002, 120), straight_two.draw(step, 1002, 120))


@pytest.mark.parametrize("name", POLICIES)
def test_a_short_history_is_taken_whole(name):
    sampler = history(name, seed=0, size=50)
    assert sampler.draw(0, 0, 120).size == 0
    sampler.join(LABELS[:5])
    assert sorted(sampler.draw(0, 5, 120).tolist()) == [0, 1, 2, 3, 4]


def test_uniform():
    counts = frequencies(lambda: UniformHistory(1), 40, 8, 4000)
    assert_binomial(counts, 4000, 8 / 40)


def test_a_window_is_uniform_and_nothing_else():
    counts = frequencies(lambda: WindowHistory(1, 30), 100, 6, 4000)
    assert not counts[:70].any()
    assert_binomial(counts[70:], 4000, 6 / 30)


@pytest.mark.parametrize(("half_life", "size"), [(200.0, 1), (2.0, 1)])
def test_exponential_weights_halve(half_life, size):
    """One draw each, by proposals and by Gumbel's trick: probabilities are known exactly."""
    counts = frequencies(lambda: ExponentialHistory(1, half_life), 600, size, 20_000)
    weights = 0.5 ** (np.arange(599, -1, -1) / half_life)
    assert_binomial(counts, 20_000, weights / weights.sum())


def test_both_ways_to_draw_exponentially_agree():
    """Several without replacement: the proposals against Gumbel's trick."""
    weights = -np.arange(500) * np.log(2) / 100
    gumbel, proposals = np.zeros(500), np.zeros(500)
    for step in range(6000):
        gumbel[by_weight(generator_of(9, step), weights, 10)] += 1
        proposals[499 - ExponentialHistory(1, 100.0).draw(step, 500, 10)] += 1
    merged = gumbel.reshape(-1, 10).sum(1), proposals.reshape(-1, 10).sum(1)
    assert (np.abs(merged[0] - merged[1]) < 5 * np.sqrt(merged[0] + merged[1] + 1)).all()


@pytest.mark.parametrize("available", [24, 60])
def test_inverse_use_prefers_what_was_drawn_less(available):
    """One draw at a time: a sample drawn u times has 1 / (1 + u) of the weight."""
    counts, draws = np.zeros(2), 3000
    uses = np.arange(available) % 2 * 3
    for step in range(draws):
        sampler = InverseUseHistory(step)
        sampler.restore({"uses": uses.astype(np.uint16)})
        counts[sampler.draw(0, available, 1 if available == 60 else 7)[0] % 2] += 1
    assert_binomial(counts[:1], draws, 4 / 5)  # weights 1 and 1/4, as many of each


def test_inverse_use_evens_out():
    sampler = grown(InverseUseHistory, LABELS[:100])
    for step in range(50):
        sampler.draw(step, 100, 10)
    sampler.join(LABELS[:20])
    drawn = np.concatenate([sampler.draw(step, 120, 10) for step in range(50, 60)])
    uses = sampler.state()["uses"]
    assert uses.sum() == 600
    assert uses[:100].std() < 1.8  # draws that ignore the uses: 2.3
    assert (drawn >= 100).sum() > 2 * 100 * 20 / 120  # newcomers catch up


def test_balanced_is_even_over_classes_and_uniform_within():
    labels = np.array([0] * 90 + [1] * 6 + [7] * 24)
    counts, sampler = np.zeros(120), grown(BalancedHistory, labels)
    for step in range(3000):
        draw = sampler.draw(step, 120, 10)
        by_class = np.bincount(labels[draw], minlength=8)[[0, 1, 7]]
        assert by_class.sum() == 10
        assert by_class.max() - by_class.min() <= 1
        counts[draw] += 1
    assert_binomial(counts[:90], 3000, 10 / 3 / 90)
    assert_binomial(counts[96:], 3000, 10 / 3 / 24)
    many = np.bincount(labels[sampler.draw(0, 120, 60)], minlength=8)
    assert many[[0, 1, 7]].tolist() == [30, 6, 24]  # all there are of the rare ones


def test_a_reservoir_keeps_every_sample_alike():
    counts = np.zeros(200)
    for seed in range(2000):
        sampler = ReservoirHistory(seed, 20)
        for start in range(0, 200, 8):
            sampler.join(LABELS[start : start + 8])
        assert len(set(sampler.kept.tolist())) == 20
        counts[sampler.kept] += 1
    assert_binomial(counts, 2000, 20 / 200)


def test_what_is_no_policy_is_refused():
    with pytest.raises(ConfigError, match="history is 'lru'; give one of uniform, window"):
        history("lru", seed=0, size=1)
    with pytest.raises(ConfigError, match="history_size is 0; give 1 or more"):
        history("window", seed=0, size=0)


@pytest.mark.parametrize("was", POLICIES)
@pytest.mark.parametrize("now", POLICIES)
def test_another_policy_goes_on_from_the_samples_so_far(was, now):
    first, straight = (history(name, seed=3, size=300) for name in (was, now))
    for sampler in (first, straight):
        sampler.join(LABELS)
    first.draw(0, 1000, 9)
    state = carried(first.state(), (was, 300), history(now, seed=3, size=300), lambda: LABELS)
    second = history(now, seed=3, size=300)
    second.restore(state)
    if was == now:
        straight = first
    for sampler in (second, straight):
        sampler.join(LABELS[:20])
    assert (second.draw(7, 1020, 90) == straight.draw(7, 1020, 90)).all()


def unneeded():
    raise AssertionError


def test_a_smaller_reservoir_is_a_uniform_sample_of_the_larger():
    counts = np.zeros(300)
    for seed in range(2000):
        larger, smaller = (ReservoirHistory(seed, size) for size in (60, 20))
        larger.join(LABELS[:200])
        rows = {"row of x": 10 * larger.kept}
        state = carried(larger.state() | rows, ("reservoir", 60), smaller, unneeded)
        assert (state["row of x"] == 10 * state["kept"]).all()
        smaller.restore(state)
        smaller.join(LABELS[:100])
        assert len(set(smaller.kept.tolist())) == 20
        counts[smaller.kept] += 1
    assert_binomial(counts, 2000, 20 / 300)


def test_a_larger_reservoir_is_begun_anew_but_where_nothing_was_left_out():
    counts = np.zeros(300)
    for seed in range(2000):
        smaller, larger = (ReservoirHistory(seed, size) for size in (20, 60))
        smaller.join(LABELS[:200])
        larger.restore(
            carried(smaller.state(), ("reservoir", 20), ReservoirHistory(seed, 60),
                    lambda: LABELS[:200])
        )  # fmt: skip
        larger.join(LABELS[:100])
        counts[larger.kept] += 1
    assert_binomial(counts, 2000, 60 / 300)
    few = grown(ReservoirHistory, LABELS[:15], capacity=20).state()
    assert carried(few, ("reservoir", 20), ReservoirHistory(3, 60), unneeded) is few
    assert carried(few, ("reservoir", 20), ReservoirHistory(3, 15), unneeded) is few


def test_draws_are_those_of_philox_keyed_by_seed_and_step():
    for step in (0, 7, 1 << 31):
        philox = np.random.Philox(key=[3, step], counter=[0, 0, 0, 0])
        drawn = np.random.Generator(philox).choice(1000, 50, replace=False)
        assert (UniformHistory(3).draw(step, 1000, 50) == drawn).all()
