import numpy as np
import pytest

from cdl_jax.data import SCENARIOS, load, scenario
from cdl_jax.errors import ConfigError

START = 400


@pytest.fixture(scope="module")
def data():
    return load("digits")


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_are_seeded_and_leave_the_data_alone(data, name):
    images, labels = data.images.copy(), data.labels.copy()
    one, again, other = (scenario(name, data, start=START, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.images, again.images)
    assert np.array_equal(one.labels, again.labels)
    same = np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)
    assert not same
    assert np.array_equal(data.images, images)
    assert np.array_equal(data.labels, labels)
    assert (one.images.dtype, one.labels.dtype) == (np.uint8, np.int32)
    if name != "class_incremental":
        assert np.array_equal(one.images[:START], images[:START])
        assert np.array_equal(one.labels[:START], labels[:START])


def test_classes_come_one_after_another(data):
    made = scenario("class_incremental", data, start=START, seed=0)
    changes = np.flatnonzero(np.diff(made.labels))
    assert len(changes) == 9
    assert len(set(made.labels[[0, *(changes + 1)]].tolist())) == 10
    pick = data.labels == made.labels[0]
    assert np.array_equal(made.images[: pick.sum()], data.images[pick])  # in their own order


def test_every_label_means_another_class_from_the_middle_on(data):
    made = scenario("label_permutation", data, start=START, seed=0)
    middle = (START + len(data)) // 2
    assert np.array_equal(made.labels[:middle], data.labels[:middle])
    pairs = set(zip(data.labels[middle:].tolist(), made.labels[middle:].tolist(), strict=True))
    assert len(pairs) == len({b for _, b in pairs}) == 10
    assert all(a != b for a, b in pairs)


def test_images_turn_slowly_to_a_right_angle(data):
    made = scenario("rotation", data, start=START, seed=0)
    assert np.array_equal(made.images[START], data.images[START])
    last, first = made.images[-1, :, :, 0], data.images[-1, :, :, 0]
    ends = [np.rot90(first, k) for k in (1, 3)]
    assert max(np.corrcoef(last.ravel(), e.ravel())[0, 1] for e in ends) > 0.95
    near = np.corrcoef(made.images[START + 20].ravel(), data.images[START + 20].ravel())[0, 1]
    assert near > 0.9


def test_noise_comes_in_the_middle(data):
    made = scenario("noise", data, start=START, seed=0)
    middle = (START + len(data)) // 2
    assert np.array_equal(made.images[:middle], data.images[:middle])
    apart = made.images[middle:].astype(int) - data.images[middle:]
    assert 20 < np.abs(apart).mean() < 60


def test_what_is_no_scenario_is_refused(data):
    assert scenario("none", data, start=START, seed=0) is data
    with pytest.raises(ConfigError, match="scenario is 'flood'; give none or one of class_inc"):
        scenario("flood", data, start=START, seed=0)
