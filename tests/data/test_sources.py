import io
import json
import os

import numpy as np
import pytest

from cdl_jax.data import from_arrays, load
from cdl_jax.data.cache import cached
from cdl_jax.data.sources import load_tfds
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


def block(number, content):
    """A field of a protocol buffer's message, of less than 16 KiB."""
    return bytes([number << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content


def pair(name, value):
    return block(1, block(1, name.encode()) + block(2, value))


def tfds_folder(path, images, labels, image="image", version="1.0.0"):
    """A data set `own` as tensorflow_datasets writes it, its records tf.train.Examples of PNGs."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image

    folder = path / "own" / version
    folder.mkdir(parents=True)
    kinds = "tensorflow_datasets.core.features."
    forms = {
        image: {
            "image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}},
            "pythonClassName": f"{kinds}image_feature.Image",
        },
        "label": {
            "classLabel": {"numClasses": "5"},
            "pythonClassName": f"{kinds}class_label_feature.ClassLabel",
        },
    }
    features = {"featuresDict": {"features": forms},
                "pythonClassName": f"{kinds}features_dict.FeaturesDict"}  # fmt: skip
    (folder / "features.json").write_text(json.dumps(features))
    split = {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "name": "train",
             "numBytes": "1", "shardLengths": [str(len(labels))]}  # fmt: skip
    info = {"name": "own", "version": version, "fileFormat": "array_record", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    writer = ArrayRecordWriter(
        str(folder / "own-train.array_record-00000-of-00001"), "group_size:1"
    )
    for pixels, label in zip(images, labels, strict=True):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        features = pair(image, block(1, block(1, png.getvalue())))
        writer.write(block(1, features + pair("label", block(3, bytes([8, label])))))
    writer.close()


def test_any_images_of_tfds_are_read_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
    tfds_folder(tmp_path, images, [3, 0, 1, 2, 4, 0])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    data = load_tfds("tfds:own")
    assert np.array_equal(data.fields["image"], images)
    assert data.labels.tolist() == [3, 0, 1, 2, 4, 0]
    assert (data.classes, data.batch([5])["image"].shape) == (5, (1, 4, 5, 3))
    assert np.array_equal(load_tfds("tfds:own:train[2:4]").fields["image"], images[2:4])
    with pytest.raises(DataError, match=r"cannot read own:1\.0\.0 in .*test"):
        load_tfds("tfds:own:test")
    (tmp_path / "own" / "old").mkdir()
    (tmp_path / "own" / "old" / "dataset_info.json").write_text("{}")
    for version in ("1.0.2", "1.0.10"):
        images = images + np.uint8(1)
        tfds_folder(tmp_path, images, [3, 0, 1, 2, 4, 0], version=version)
        assert np.array_equal(load_tfds("tfds:own").fields["image"], images)


def test_what_tfds_does_not_have_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=f"no cats in {tmp_path}: give --data-dir or TFDS_DATA_DIR"):
        load_tfds("tfds:cats", data_dir=str(tmp_path))
    for name in ("", "/etc", "../own", ":train"):
        with pytest.raises(DataError, match="give tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:SPLIT"):
            load_tfds(f"tfds:{name}", data_dir=str(tmp_path))
    images = [np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)]
    tfds_folder(tmp_path / "sizes", images, [0, 1])
    with pytest.raises(DataError, match=r"image 1 is \[4, 6, 3\], the first is \[4, 5, 3\]; make"):
        load_tfds("tfds:own", data_dir=str(tmp_path / "sizes"))
    tfds_folder(tmp_path / "other", images, [0, 1], image="picture")
    with pytest.raises(DataError, match=r"features \['label', 'picture'\]; image and label are"):
        load_tfds("tfds:own", data_dir=str(tmp_path / "other"))
