import os

import numpy as np
import pytest

from cdl_jax.data import from_arrays, load
from cdl_jax.data.cache import cached
from cdl_jax.errors import DataError


def test_digits_follow_the_stated_rule():
    from sklearn.datasets import load_digits

    small = load_digits().images
    data = load("digits")
    assert data.images.shape == (1797, 28, 28, 1)
    assert data.images.dtype == np.uint8
    for row, column in [(0, 0), (3, 4), (7, 7)]:
        block = data.images[:, 2 + 3 * row : 5 + 3 * row, 2 + 3 * column : 5 + 3 * column, 0]
        expected = np.rint(small[:, row, column] * 255 / 16)
        assert (block == expected[:, None, None]).all()
    margin = data.images.copy()
    margin[:, 2:26, 2:26] = 0
    assert not margin.any()
    assert data.labels[:5].tolist() == [0, 1, 2, 3, 4]
    pixels = data.images / 255
    assert abs(pixels.mean() - data.mean[0]) < 1e-3
    assert abs(pixels.std() - data.std[0]) < 1e-3


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="no data set folder at hand")
def test_mnist_is_the_original_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):  # decoded, then from the cache
        data = load("mnist", split="test")
        assert data.images.shape == (10000, 28, 28, 1)
        assert data.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        assert int(data.images[0].astype(int).sum()) == 18454
    assert len(list((tmp_path / "cdl_jax").iterdir())) == 1


def test_what_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(DataError, match="no mnist in .*--data-dir or TFDS_DATA_DIR"):
        load("mnist", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="dataset is 'imagenet'; give one of digits, mnist"):
        load("imagenet")
    with pytest.raises(DataError, match="no split 'test'"):
        load("digits", split="test")
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="cannot read mnist"):
        load("mnist", data_dir=str(tmp_path))


def test_arrays_of_ones_own():
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 2, 1, 0])
    data = from_arrays(images, labels, mean=(0.5,) * 3, std=(0.1,) * 3)
    assert (len(data), data.classes, data.labels.dtype) == (4, 3, np.int32)
    assert data.batch([1, 3])["label"].tolist() == [2, 0]
    mean = (0.5,) * 3
    for bad in [
        (images.astype(float), labels, mean), (images[..., 0], labels, mean),
        (images, labels[:3], mean), (images, labels / 2, mean), (images, labels - 1, mean),
        (images, labels, (0.5,)),
    ]:  # fmt: skip
        with pytest.raises(DataError, match="give|need"):
            from_arrays(bad[0], bad[1], mean=bad[2], std=(0.1,) * 3)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    folder = tmp_path / "name" / "1.0"
    folder.mkdir(parents=True)
    arrays = np.ones(2), np.zeros(2)
    assert cached(folder, "train", lambda: arrays) is arrays


def test_the_cache_follows_its_source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "name" / "1.0"
    folder.mkdir(parents=True)
    (folder / "data").write_text("a")
    assert cached(folder, "train", lambda: (np.ones(2), np.ones(2)))[0].tolist() == [1, 1]
    assert cached(folder, "train", lambda: (np.zeros(2),) * 2)[0].tolist() == [1, 1]
    (folder / "data").write_text("other")
    assert cached(folder, "train", lambda: (np.zeros(2),) * 2)[0].tolist() == [0, 0]
