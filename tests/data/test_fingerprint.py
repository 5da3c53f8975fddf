import numpy as np
import pytest
import xxhash

from cdl_jax.data import fingerprint as module
from cdl_jax.data.fingerprint import facts, fingerprint
from cdl_jax.data.samples import array_data

X = np.arange(9000 * 4, dtype=np.float32).reshape(9000, 4)
LABEL = np.arange(9000) % 7


def known(x: np.ndarray = X, label: np.ndarray = LABEL, stop: int = 9000):
    return fingerprint(array_data("own", {"x": x, "label": label}), stop)


def other(array, place):
    array = array.copy()
    array[place] += 1
    return array


def odd(one, two):
    return sorted(name for name in one if one[name] != two[name])


def test_one_value_makes_another_fingerprint_and_its_place_in_memory_none():
    assert known() == known(np.asfortranarray(X), LABEL.astype(np.int32))
    assert odd(known(), known(x=other(X, (8999, 2)))) == ["content of the data"]
    assert "labels of the data" in odd(known(), known(label=other(LABEL, 5000)))
    assert odd(known(), known(x=X.astype(np.float16))) == ["content of the data"]
    assert odd(known(), known(x=X[:-1], label=LABEL[:-1])) == [
        "content of the data", "labels of the data", "samples",
    ]  # fmt: skip


def test_what_the_run_does_not_take_is_none_of_its_business():
    assert known(stop=5000) == known(x=other(X, (5000, 0)), stop=5000)
    assert known(stop=5001) != known(x=other(X, (5000, 0)), stop=5001)


def test_of_large_data_a_part_and_all_labels_are_looked_at(monkeypatch):
    monkeypatch.setattr(module, "_BYTES", 20 * 100)  # a hundred samples of 20 bytes
    apart = [known() != known(x=other(X, slice(i, i + 900))) for i in range(0, 9000, 900)]
    assert all(apart)
    alone = [known() != known(x=other(X, (i, 0))) for i in range(0, 9000, 300)]
    assert sum(alone) < 10
    assert odd(known(), known(label=other(LABEL, 4321))) != []


def test_labels_need_not_be_there():
    assert odd(
        fingerprint(array_data("own", {"x": X}), 10), fingerprint(array_data("own", {"y": X}), 10)
    ) == ["content of the data"]


@pytest.mark.parametrize("stop", [0, 1])
def test_short_data_have_one_too(stop):
    assert known(stop=stop)["samples"] == 9000


def test_the_facts_in_a_log_are_hashed_as_ever():
    found = facts(array_data("own", {"x": X, "label": LABEL}), 9000)
    some = np.linspace(0, 8999, 1000).astype(np.int64)
    content = b"label" + LABEL[some].astype(np.int32).tobytes() + b"x" + X[some].tobytes()
    assert found["digest"] == xxhash.xxh3_128(content).hexdigest()
    assert found["classes"] == 7
