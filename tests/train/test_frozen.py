import json

import numpy as np

from cdl_jax.train.frozen import FrozenModel
from cdl_jax.train.scoring import Scores


def make(stop, asked, right=lambda batch: batch % 3 == 0):
    def read(start, end):
        asked.append((start, end))
        return np.arange(start, end)

    def score(tree, batch):
        return lambda: Scores(right(batch), None, {})

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


def test_scores_that_are_no_0_or_1_stay_what_they_are_also_in_a_state():
    def score(batch):
        return (batch / 7).astype(np.float32)

    frozen, resumed = make(1300, [], score), make(1300, [], score)
    assert frozen.right(100, 103) == score(np.arange(100, 103)).tolist()
    resumed.restore(json.loads(json.dumps(frozen.state())))
    for start, stop in ((103, 110), (590, 610)):
        assert resumed.right(start, stop) == frozen.right(start, stop)
        assert frozen.right(start, stop) == score(np.arange(start, stop)).tolist()
