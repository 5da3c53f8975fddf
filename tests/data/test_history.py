import numpy as np

from cdl_jax.data import UniformHistory


def test_draws_are_distinct_in_range_and_a_function_of_seed_and_step():
    sampler = UniformHistory(3)
    draw = sampler.draw(5, 1000, 120)
    assert len(set(draw.tolist())) == 120
    assert draw.min() >= 0
    assert draw.max() < 1000
    assert np.array_equal(draw, UniformHistory(3).draw(5, 1000, 120))
    assert not np.array_equal(draw, sampler.draw(6, 1000, 120))
    assert not np.array_equal(draw, UniformHistory(4).draw(5, 1000, 120))


def test_a_short_history_is_taken_whole():
    assert sorted(UniformHistory(0).draw(0, 5, 120).tolist()) == [0, 1, 2, 3, 4]
    assert UniformHistory(0).draw(0, 0, 120).size == 0


def test_draws_are_uniform():
    counts = np.zeros(40)
    for step in range(4000):
        counts[UniformHistory(1).draw(step, 40, 8)] += 1
    expected = 4000 * 8 / 40
    # Each count is binomial(4000, 1/5): 4.5 sigma is 114.
    assert np.abs(counts - expected).max() < 114
