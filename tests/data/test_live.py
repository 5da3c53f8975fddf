import contextlib
import itertools
import threading
import time

import numpy as np
import pytest

from cdl_jax.data.live import END, LiveData
from cdl_jax.data.spool import Spool
from cdl_jax.errors import DataError


@pytest.fixture(autouse=True)
def _closed(monkeypatch):
    made = []
    for kind in (Spool, LiveData):
        init = kind.__init__

        def noted(self, *args, init=init, **options):
            made.append(self)
            init(self, *args, **options)

        monkeypatch.setattr(kind, "__init__", noted)
    yield
    for one in reversed(made):
        with contextlib.suppress(AttributeError):  # it was refused
            one.close()


def sample(i):
    return {"x": np.full(3, i, np.float32), "label": i % 3}


def test_rows_are_found_again_by_another_life(tmp_path):
    spool = Spool(tmp_path, "s", rows=4)
    for i in range(10):
        spool.append(sample(i))
        assert spool.batch([i])["x"].tolist() == [[i] * 3]
        with pytest.raises(DataError, match=f"sample {i + 1} of s has not come yet"):
            spool.batch([0, i + 1])
    assert spool.batch([9, 0, 4])["x"][:, 0].tolist() == [9, 0, 4]
    spool.close()
    with (tmp_path / "000000000008" / "x.bin").open("ab") as file:
        file.write(b"cut sh")  # by a kill
    again = Spool(tmp_path, "s")
    assert again.stop == 10
    again.append(sample(10))
    again.append(sample(11))
    again.append(sample(12))
    assert again.batch(np.arange(13))["x"][:, 1].tolist() == list(range(13))
    assert again.batch(np.arange(13))["label"].dtype == np.int32
    with pytest.raises(DataError, match="samples of s, not of t"):
        Spool(tmp_path, "t")


def test_what_is_forgotten_leaves_the_disk_but_for_what_is_wanted(tmp_path):
    spool = Spool(tmp_path, "s", rows=4)
    for i in range(14):
        spool.append(sample(i))
    spool.forget(9, wanted=[1, 6, 9])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "000000000008", "000000000012",
    ]  # fmt: skip
    assert spool.batch([6, 13, 1, 8])["x"][:, 0].tolist() == [6, 13, 1, 8]
    with pytest.raises(DataError, match="sample 2 of s is not kept any more"):
        spool.batch([2])
    rows = spool.batch([1, 6])
    again = Spool(tmp_path, "s")
    again.restore(np.array([1, 6]), rows)
    assert again.batch([6, 1])["x"][:, 0].tolist() == [6, 1]
    again.forget(9, wanted=[6])
    with pytest.raises(DataError, match="not kept"):
        again.batch([1])


def test_a_kill_while_a_segment_is_removed_loses_no_later_row(tmp_path, monkeypatch):
    spool = Spool(tmp_path, "s", rows=4)
    for i in range(12):
        spool.append(sample(i))

    def cut_short(folder):
        next(folder.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            spool.forget(5)
    again = Spool(tmp_path, "s")
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 2
    for i in range(12, 15):
        again.append(sample(i))
    third = Spool(tmp_path, "s")
    assert third.stop == 15
    assert third.batch([4, 11, 12, 14])["x"][:, 0].tolist() == [4, 11, 12, 14]


def test_one_thread_forgets_while_another_appends(tmp_path):
    spool = Spool(tmp_path, "s", rows=1)
    spool.append({"x": 0})

    class Slow(dict):
        def __iter__(self):
            for first in super().__iter__():
                time.sleep(0.001)  # the other thread closes a segment, unless it is kept waiting
                yield first

    spool._full = Slow(spool._full)
    thread = threading.Thread(target=lambda: [spool.append({"x": i}) for i in range(1, 200)])
    thread.start()
    while thread.is_alive():
        spool.forget(spool.stop - 20, wanted=[0, 5])
    thread.join()
    assert spool.batch([199, 5, 0])["x"].tolist() == [199, 5, 0]


def test_where_all_is_forgotten_the_next_life_still_knows_how_many_came(tmp_path):
    spool = Spool(tmp_path, "s", rows=4)
    for i in range(8):
        spool.append(sample(i))
    spool.forget(8)
    again = Spool(tmp_path, "s")
    assert again.stop == 8
    again.append(sample(8))
    assert Spool(tmp_path, "s").batch([8])["x"][:, 0].tolist() == [8]


def test_samples_of_another_form_are_refused(tmp_path):
    spool = Spool(tmp_path, "s")
    spool.append({"x": [0.5, 1.0]})
    spool.append({"x": [1, 2]})  # JSON's whole numbers
    assert spool.batch([1])["x"].dtype == np.float32
    for bad in ({"x": [1.0]}, {"y": [1.0, 2.0]}, {"x": [1.0, 2.0], "label": 3}):
        with pytest.raises(DataError, match="sample 2 of s has .*, the first one had x float32"):
            spool.append(bad)
    assert spool.stop == 2


def live(tmp_path, source, **options):
    return LiveData("s", source, Spool(tmp_path, "s", rows=8), **options)


def test_a_stream_goes_on_where_it_was_and_ends(tmp_path):
    held = []

    def source(count, last):
        held.append((count, None if last is None else int(last["label"])))
        yield from map(sample, range(count, 20))

    data = live(tmp_path, source, ahead=5)
    assert data.wait(3) >= 3
    time.sleep(0.2)
    assert len(data) == 8  # three asked for, five ahead
    assert data.stop == END
    data.close()
    data = live(tmp_path, source)
    assert data.wait(100) == data.stop == len(data) == 20
    assert held == [(0, None), (9, 8 % 3)]  # the one in hand at the end was kept, too
    assert data.labels[17:20].tolist() == [2, 0, 1]
    data.close()
    with pytest.raises(DataError, match="ended after 20 samples, but .* takes 21"):
        live(tmp_path, source, initial=21).first()
    fewer = live(tmp_path, source, classes=2)  # as only a changed --classes does it
    assert fewer.wait(20) == 20
    with pytest.raises(DataError, match=r"labels from 0 to 2, but the run's are 0 to 1; give more"):
        fewer.labels[:20]


def test_a_sample_says_when_it_came(tmp_path):
    def source(count, last):
        yield sample(count)
        time.sleep(0.1)
        yield from map(sample, range(count + 1, 3))

    begun = time.time()
    data = live(tmp_path, source)
    assert data.wait(3) == 3
    first, second = data.arrived_at(0), data.arrived_at(1)
    assert begun <= first <= second - 0.1 <= time.time() - 0.1
    data.close()
    again = live(tmp_path, source)
    now = time.time()
    assert again.arrived_at(2) >= now  # of an earlier life nobody knows


def test_a_stream_that_stalls_or_fails(tmp_path):
    end = threading.Event()

    def stalled(count, last):
        yield sample(count)
        end.wait(10)

    data = live(tmp_path / "a", stalled, stall_seconds=0.2)
    assert data.wait(1) == 1
    begun = time.monotonic()
    assert data.wait(2, seconds=0.05) == 1
    assert time.monotonic() - begun < 0.15
    with pytest.raises(DataError, match="brought no sample for 0.2 s, after 1; mend it"):
        data.wait(2)
    data = live(tmp_path / "b", stalled, stall_seconds=0.2, on_stall="end")
    assert data.wait(9) == data.stop == 1
    end.set()

    def failing(count, last):
        yield sample(0)
        raise OSError("sensor gone")

    data = live(tmp_path / "c", failing)
    assert data.wait(1) == 1
    with pytest.raises(DataError, match=r"s failed after 1 samples: OSError\('sensor gone'"):
        data.wait(2)

    def odd(count, last):
        yield from itertools.chain([sample(0)], [{"x": np.zeros(4)}])

    with pytest.raises(DataError, match="sample 1 of s has"):
        live(tmp_path / "d", odd).wait(2)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/x", ".hidden", "a/b", "", "a" * 101, "x\n"])
def test_names_that_are_no_plain_file_names_are_refused_before_anything_is_written(tmp_path, name):
    spool = Spool(tmp_path / "run" / "samples", "s")
    with pytest.raises(DataError, match="sample 0 of s has a field .*; give names of up to 100"):
        spool.append({"x": [1.0], name: 1})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    spool.append({"x": [1.0], "A_b-1." + "c" * 94: 1})
    assert spool.stop == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"x": [1.0], "who": "bob"}, "<U3 in who; give numbers"),
        ({"x": [None, 1]}, "object in x"),
        ({"x": 1j}, "complex128 in x"),
        ({"x": [1.0], "y": []}, "nothing in y"),
        ({}, "no field; give one at least"),
        ({"_id": [1]}, "no field"),
    ],
)
def test_rows_that_no_later_life_could_read_are_refused(tmp_path, row, words):
    spool = Spool(tmp_path, "s")
    with pytest.raises(DataError, match=words):
        spool.append(row)
    assert not list(tmp_path.iterdir())
    spool.append(sample(0))
    spool.close()
    assert Spool(tmp_path, "s").stop == 1


def test_the_other_byte_order_is_read_back_as_it_was(tmp_path):
    spool = Spool(tmp_path, "s")
    spool.append({"x": np.array([1.5, -2], ">f4"), "n": np.array(7, ">i8")})
    spool.close()
    row = Spool(tmp_path, "s").batch([0])
    assert (row["x"].tolist(), row["n"].tolist()) == ([[1.5, -2]], [7])


def _refusing(tmp_path, rows, **options):
    """The sentence with which a row is refused; those before it are kept."""
    data = live(tmp_path, lambda held, last: iter(rows[held:]), **options)
    with pytest.raises(DataError) as refused:
        data.wait(len(rows))
    data.close()
    return str(refused.value), len(data)


@pytest.mark.parametrize("classes", [0, 3])
def test_a_label_out_of_range_is_refused_before_it_is_kept(tmp_path, classes):
    rows = [*map(sample, range(12)), {"x": np.zeros(3, np.float32), "label": 3}, sample(0)]
    options = {"initial": 6, "classes": classes}
    words, kept = _refusing(tmp_path, rows, **options)
    assert "sample 12 of s has label 3, but the run's are 0 to 2; it is not kept" in words
    assert kept == 12
    rows[12] = {"x": np.zeros(3, np.float32), "label": -1}  # another life, no better
    assert "has label -1" in _refusing(tmp_path, rows, **options)[0]
    rows[12] = sample(12)  # the mend that the sentence names
    data = live(tmp_path, lambda held, last: iter(rows[held:]), **options)
    data.first()
    assert data.wait(14) == 14
    assert data.classes == 3
    assert data.labels[12:14].tolist() == [0, 0]


def test_a_sample_that_is_not_finite_is_refused_before_it_is_kept(tmp_path):
    rows = [sample(0), {"x": np.array([0, np.nan, 1], np.float32), "label": 0, "_id": b"7-1"}]
    rows[1]["_id"] = rows[0]["_id"] = np.frombuffer(b"7-1  ", np.uint8)
    words, kept = _refusing(tmp_path / "a", rows, finite=True)
    assert words.startswith("entry 7-1 of s has a NaN or an infinity in x as float32")
    assert kept == 1
    assert live(tmp_path / "b", lambda held, last: iter(rows)).wait(2) == 2  # a model of one's own


def test_a_number_that_is_infinite_in_32_bits_is_refused_but_in_the_sources_own_fields(tmp_path):
    rows = [{"x": 1.0, "_at": np.inf}, {"x": 1e300, "_at": 0.0}]
    words, kept = _refusing(tmp_path, rows, finite=True)
    assert "sample 1 of s has a NaN or an infinity in x as float32, which ends at 3.4e+38" in words
    assert kept == 1


def test_an_integer_of_more_than_32_bits_is_refused_with_its_place(tmp_path):
    words, kept = _refusing(tmp_path, [{"x": 1.0, "n": 0}, {"x": 1.0, "n": 1 << 40}])
    assert words.startswith("sample 1 of s, field n: integers from 1099511627776 to")
    assert kept == 1


@pytest.mark.parametrize("own", [200, np.uint8(200), b"\xc8"])
def test_an_iterators_own_id_is_no_entry_of_a_broker(tmp_path, own):
    words, _ = _refusing(tmp_path, [{"_id": own, "x": "word"}])
    assert words.startswith("sample 0 of s has ")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda held, last: iter([(np.zeros(3), 0)]), "sample 0 of s is a tuple; give a dict"),
        (lambda held, last: None, "s gave NoneType; give an iterator of samples"),
    ],
)
def test_what_is_no_stream_of_dicts_is_said(tmp_path, source, words):
    with pytest.raises(DataError, match=words):
        live(tmp_path, source).wait(1)


def test_the_files_are_closed_before_their_folder_goes(tmp_path):
    gone = []
    data = live(tmp_path, lambda held, last: iter([sample(0)]), on_close=lambda: gone.append(1))
    assert data.wait(1) == 1
    data.close()
    assert gone == [1]
