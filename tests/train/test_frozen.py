import numpy as np

from cdl_jax.train.frozen import FrozenModel
from cdl_jax.train.scoring import Scores


def make(stop, asked):
    def read(start, end):
        asked.append((start, end))
        return np.arange(start, end)

    def score(tree, batch):
        return lambda: Scores(batch % 3 == 0, None, {})

    return FrozenModel(None, score, read, lambda: stop)


def test_every_sample_is_scored_once_and_ahead():
    asked, seen = [], []
    frozen = make(1300, asked)
    for start in range(100, 1300, 7):
        seen += frozen.right(start, min(start + 7, 1300))
    assert seen == [int(p % 3 == 0) for p in range(100, 1300)]
    assert asked == [(100, 600), (600, 1100), (1100, 1300)]


def test_a_state_goes_on_without_scoring_again():
    asked, again = [], []
    frozen, resumed = make(1300, asked), make(1300, again)
    frozen.right(100, 107)
    resumed.restore(frozen.state())
    assert resumed.right(107, 114) == frozen.right(107, 114)
    assert not again
