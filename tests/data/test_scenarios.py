import numpy as np
import pytest

from cdl_jax.data import SCENARIOS, load, scenario
from cdl_jax.data.samples import array_data
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


@pytest.mark.parametrize("name", SCENARIOS)
def test_fields_of_ones_own_drift_as_the_images_do(data, name):
    own = array_data("own", {"image": data.images, "label": data.labels})
    made = scenario(name, own, start=START, seed=3)
    same = scenario(name, data, start=START, seed=3)
    assert np.array_equal(made.fields["image"], same.images)
    assert np.array_equal(made.fields["label"], same.labels)


def test_flat_features_drift_too_and_names_of_things_stay():
    rng = np.random.default_rng(0)
    x = rng.normal(0, [1, 50], (3000, 2)).astype(np.float32)
    fields = {"x": x, "item": np.arange(3000), "label": np.arange(3000) % 3}
    own = array_data("own", fields)
    made = scenario("noise", own, start=1000, seed=0).fields
    assert np.array_equal(made["x"][:2000], x[:2000])
    assert made["x"].dtype == np.float32
    spans = np.ptp(x[:1000], axis=0)
    assert (made["x"][2000:] - x[2000:]).std(0) == pytest.approx(spans / 4, rel=0.1)
    assert made["item"] is fields["item"]
    assert made["label"] is fields["label"]
    made = scenario("class_incremental", own, start=1000, seed=0).fields
    assert np.array_equal(made["x"], x[made["item"]])
    assert np.array_equal(made["label"], made["item"] % 3)
    pixels = rng.random((50, 6, 6, 1))
    turned = scenario("rotation", array_data("own", {"p": pixels}), start=10, seed=0).fields["p"]
    assert turned.dtype == np.float64
    assert np.array_equal(turned[10], pixels[10])
    assert not np.array_equal(turned[-1], pixels[-1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_noise_stays_within_what_a_dtype_holds(dtype):
    x = np.tile(np.array([0, np.finfo(dtype).max], dtype), 50)[:, None]
    x[80] = np.inf
    made = scenario("noise", array_data("own", {"x": x}), start=10, seed=0).fields["x"]
    assert np.flatnonzero(np.isinf(made)).tolist() == [80]  # of the data themselves
    assert (made[55:] == np.finfo(dtype).max).any()


def test_the_change_is_before_the_end_of_the_run(data):
    made = scenario("label_permutation", data, start=START, stop=1000, seed=0)
    assert np.flatnonzero(made.labels != data.labels)[0] == 700
    made = scenario("noise", data, start=START, stop=1000, seed=0)
    assert np.flatnonzero((made.images != data.images).any((1, 2, 3)))[0] == 700
    made = scenario("class_incremental", data, start=START, stop=500, seed=0)
    assert len(set(made.labels[START - 1 : 500].tolist())) >= 2
    assert np.array_equal(np.sort(made.labels[:500]), np.sort(data.labels[:500]))
    made = scenario("rotation", data, start=START, stop=500, seed=0)
    whole = scenario("rotation", data, start=START, seed=0)
    assert np.corrcoef(made.images[499].ravel(), whole.images[499].ravel())[0, 1] < 0.7


@pytest.mark.parametrize(
    ("name", "stop", "fields", "words"),
    [
        ("noise", 401, {}, r"this has 1 sample\(s\); give a larger --limit"),
        ("class_incremental", 403, {}, "no new class to samples 400 to 403"),
        ("label_permutation", None, {"label": np.zeros(900, int)}, "two classes or more, but own"),
        ("rotation", None, {"x": np.zeros((900, 3))}, r"images \[N, H, W, C\], but .* float64"),
        ("noise", None, {"x": np.zeros((900, 3), int)}, r"floats or uint8.*int64\[900, 3\]"),
    ],
)
def test_a_change_that_cannot_be_is_refused(data, name, stop, fields, words):
    given = array_data("own", fields) if fields else data
    with pytest.raises(ConfigError, match=words):
        scenario(name, given, start=START, stop=stop, seed=0)
