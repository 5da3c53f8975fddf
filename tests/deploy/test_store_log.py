import subprocess
import sys
import time

import numpy as np
import pytest

from cdl_jax.core.layout import LeafSpec, TreeSpec
from cdl_jax.deploy import Manifest, Publisher, open_log
from cdl_jax.errors import LogError, OwnershipError
from tests.deploy.small import Run

SPEC = TreeSpec((LeafSpec("params/w", (3,), "float32"),))


def begun(path):
    log = open_log(str(path), create=True)
    return log, log.claim(patience=0.4)


def test_versions_are_written_once_and_read_by_name(tmp_path):
    log, owner = begun(tmp_path)
    log.append(1, b"one", owner)
    log.append(1, b"one", owner)  # a retried put finds its own bytes
    assert (log.read(1), log.read(2)) == (b"one", None)
    with pytest.raises(LogError, match="another update already"):
        log.append(1, b"two", owner)
    assert log.read(1) == b"one"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 9, 33])
def test_head_is_the_last_version_without_listing(tmp_path, count):
    log, owner = begun(tmp_path)
    assert log.head() is None
    log.write_snapshot(0, b"s", owner)
    for version in range(1, count + 1):
        log.append(version, b"x", owner)
    assert log.head() == count


def test_the_newest_snapshot_never_goes_back(tmp_path):
    log, owner = begun(tmp_path)
    log.write_snapshot(5, b"five", owner)
    log.write_snapshot(2, b"two", owner)
    assert log.newest_snapshot() == 5
    with pytest.raises(LogError, match="no snapshot of version 3"):
        log.read_snapshot(3)


def test_a_live_writer_keeps_others_out_and_a_release_lets_them_in(tmp_path):
    log, owner = begun(tmp_path)
    with pytest.raises(OwnershipError, match=r"live writer \(process \d+"):
        open_log(str(tmp_path)).claim(patience=0.1)
    owner.ensure()
    owner.release()
    with open_log(str(tmp_path)).claim(patience=0.4) as second:
        second.ensure()
        with pytest.raises(OwnershipError, match="took over"):
            log.append(1, b"x", owner)
    assert log.read(1) is None


def test_a_writer_of_this_machine_that_died_is_replaced_at_once(tmp_path):
    code = "import sys, os; from cdl_jax.deploy import open_log\n" \
        "open_log(sys.argv[1], create=True).claim(); os._exit(9)"  # fmt: skip
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    begin = time.monotonic()
    open_log(str(tmp_path)).claim(patience=5.0).release()
    assert time.monotonic() - begin < 2.5


def test_a_writer_elsewhere_whose_heart_stands_still_is_replaced(tmp_path):
    _, owner = begun(tmp_path)
    owner._stop.set()  # the heartbeat ends, as under SIGKILL
    record = tmp_path / "owner" / "00000001.json"
    record.write_text(record.read_text().replace('"host": "', '"host": "far away '))
    second = open_log(str(tmp_path)).claim(patience=0.2)
    with pytest.raises(OwnershipError, match="took over"):
        owner.ensure()
    second.release()


def test_a_run_begins_a_log_and_finds_its_own_again(tmp_path):
    log, owner = begun(tmp_path)
    settings = {"program": {"jax": "1"}, "config": {"seed": 0}}
    tree = {"params": {"w": np.zeros(3, np.float32)}}
    first = Publisher.begin(log, owner, tree, **settings)
    again = Publisher.begin(log, owner, tree, **settings)
    assert again.manifest == first.manifest
    assert first.manifest.spec == SPEC
    other = {"params": {"w": np.zeros(4, np.float32)}}
    with pytest.raises(LogError, match="another model"):
        Publisher.begin(log, owner, other, **settings)
    with pytest.raises(LogError, match="another program.*jax is '2' here, '1' there"):
        Publisher.begin(log, owner, tree, program={"jax": "2"}, config={"seed": 0})
    with pytest.raises(LogError, match="another configuration.*seed is 1 here, 0 there"):
        Publisher.begin(log, owner, tree, program={"jax": "1"}, config={"seed": 1})


def test_a_killed_run_that_starts_again_finds_its_bytes_and_goes_on(tmp_path):
    first = Run(tmp_path)
    first.publish(7)
    first.owner.release()
    second = Run(tmp_path)
    second.publish(9)
    assert second.blobs[:7] == first.blobs
    assert second.log.head() == 9


def test_a_first_record_that_is_not_one_is_refused(tmp_path):
    log, _ = begun(tmp_path)
    for text in ["", "{}", "[1]", '{"format": "x"}', "null"]:
        (tmp_path / "log.json").write_text(text)
        with pytest.raises(LogError, match="first record"):
            log.manifest()
    (tmp_path / "log.json").write_bytes(Manifest(bytes(16), SPEC, {}, {}).to_bytes())
    assert log.manifest() == Manifest(bytes(16), SPEC, {}, {})


def test_where_there_is_no_log_it_says_so(tmp_path):
    with pytest.raises(LogError, match="there is no log at"):
        open_log(str(tmp_path / "none"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogError, match="is a file"):
        open_log(str(tmp_path / "file"), create=True)
    with pytest.raises(LogError, match="give a folder, or a URL"):
        open_log("ftp://nowhere/log")
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "newest").write_text("-3")
    with pytest.raises(LogError, match="damaged"):
        open_log(str(tmp_path)).newest_snapshot()


def test_a_log_in_memory_serves_the_same_way():
    log = open_log("memory://x")
    owner = log.claim(patience=0.2)
    log.append(1, b"one", owner)
    assert log.read(1) == b"one"
    owner.release()
