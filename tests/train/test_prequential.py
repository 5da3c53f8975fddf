import numpy as np
import pytest

from cdl_jax.train.prequential import Awaited, Prequential, Window


def fill(values, **options):
    score = Prequential(**options)
    for start in range(0, len(values), 7):
        score.add(values[start : start + 7])
    return score


def test_accuracies_equal_rivers():
    river = pytest.importorskip("river")
    from river import metrics, stats, utils

    del river
    right = (np.random.default_rng(0).random(500) < 0.7).astype(int).tolist()
    whole, window = metrics.Accuracy(), utils.Rolling(metrics.Accuracy, window_size=50)
    fading = stats.EWMean(fading_factor=0.05)
    for end, value in enumerate(right, 1):
        whole.update(1, value)
        window.update(1, value)
        fading.update(value)
        score = fill(right[:end], window=50, fading_factor=0.05) if end % 50 in (0, 7) else None
        if score is not None:
            assert score.mean == whole.get()
            assert score.window_mean == window.get()
            assert score.fading_mean == pytest.approx(fading.get(), rel=1e-14)


def test_losses_equal_rivers():
    pytest.importorskip("river")
    from river import stats, utils

    losses = np.random.default_rng(1).exponential(size=300).tolist()
    whole, window, fading = stats.Mean(), utils.Rolling(stats.Mean, 40), stats.EWMean(0.1)
    for value in losses:
        whole.update(value)
        window.update(value)
        fading.update(value)
    score = fill(losses, window=40, fading_factor=0.1)
    assert score.mean == pytest.approx(whole.get(), rel=1e-12)
    assert score.window_mean == pytest.approx(window.get(), rel=1e-12)
    assert score.fading_mean == pytest.approx(fading.get(), rel=1e-12)


def test_delayed_labels_score_as_rivers_do():
    """A model that predicts the label learned last: each sample by the model that met it."""
    pytest.importorskip("river")
    from river import base, evaluate, metrics

    class Last(base.Classifier):
        label = 0

        def learn_one(self, x, y):
            self.label = y

        def predict_one(self, x):
            return self.label

    labels, delay = np.random.default_rng(2).integers(0, 3, 200).tolist(), 9
    pairs = [({"i": i}, y) for i, y in enumerate(labels)]
    theirs = evaluate.progressive_val_score(pairs, Last(), metrics.Accuracy(), delay=delay)

    awaited, score, known = Awaited(), Prequential(), 0
    for position, label in enumerate(labels):
        if position >= delay:
            score.add(awaited.labelled(1))
            known = labels[position - delay]
        awaited.predicted([int(known == label)])
    score.add(awaited.labelled(delay))
    assert score.seen == theirs.cm.n_samples == 200
    assert score.mean == theirs.get()


def test_states_go_on():
    values = np.random.default_rng(3).random(90).tolist()
    whole, first = fill(values, window=20), fill(values[:49], window=20)
    again = Prequential(window=20)
    again.restore(first.state())
    again.add(values[49:])
    assert again.state() == whole.state()
    assert again.mean == whole.mean
    awaited = Awaited()
    awaited.predicted([1, 2, 3])
    other = Awaited()
    other.restore(awaited.state())
    assert other.labelled(2) == [1, 2]
    assert Prequential().mean == Prequential().window_mean == 0


@pytest.mark.parametrize("size", [1, 3, 20, 200])
def test_a_window_is_the_last_values_however_they_came(size):
    values = np.random.default_rng(4).normal(size=170).tolist()
    window, one_by_one = Window(size), Window(size)
    for end in range(10, 171, 10):
        window.add(values[end - 10 : end])
        for value in values[end - 10 : end]:
            one_by_one.add([value])
        assert (len(window), window.sum) == (min(size, end), one_by_one.sum)
        assert window.sum == pytest.approx(sum(values[max(0, end - size) : end]), abs=1e-12)
        assert window.state() == one_by_one.state()


@pytest.mark.parametrize("size", [5, 17, 20, 40])
def test_a_window_goes_on_with_another_size(size):
    values = np.random.default_rng(5).normal(size=100).tolist()
    first, other = Window(20), Window(size)
    first.add(values[:47])
    other.restore(first.state())
    held = min(size, 20)
    assert other.sum == pytest.approx(sum(values[47 - held : 47]), abs=1e-12)
    other.add(values[47:])
    assert other.sum == pytest.approx(sum(values[100 - size :]), abs=1e-12)
