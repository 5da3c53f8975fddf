import subprocess
import sys
import time

import numpy as np
import pytest

from cdl_jax.deploy import Replica, Retention, open_log
from cdl_jax.deploy.retention import Kept
from cdl_jax.errors import ConfigError, LogError
from tests.deploy.small import Run

UPDATES = [Kept(v, 10, 100.0 - v) for v in range(1, 41)]
SNAPSHOTS = [Kept(v, 50, 100.0 - v) for v in (0, 10, 20, 30)]


@pytest.mark.parametrize(
    ("limits", "start"),
    [
        ({"versions": 40}, 0), ({"versions": 39}, 10), ({"versions": 20}, 20),
        ({"versions": 1}, 30), ({"seconds": 99.5}, 0), ({"seconds": 80.0}, 20),
        ({"seconds": 0.1}, 30), ({"bytes": 600}, 0), ({"bytes": 450}, 10), ({"bytes": 449}, 20),
        ({"bytes": 1}, 30), ({"versions": 39, "bytes": 300}, 20), ({}, 0),
    ],
)  # fmt: skip
def test_the_oldest_snapshot_within_every_limit_stays(limits, start):
    assert Retention(**limits).horizon(UPDATES, SNAPSHOTS, 30) == start


def test_a_limit_that_keeps_nothing_is_refused():
    for name in ("versions", "seconds", "bytes"):
        with pytest.raises(ConfigError, match=f"keep_{name} is 0; give more than 0"):
            Retention(**{name: 0})


def names(path, folder):
    return sorted(int(p.stem) for p in (path / folder).iterdir() if p.stem.isdigit())


def test_a_log_is_trimmed_up_to_a_snapshot_and_readers_begin_there(tmp_path):
    run = Run(tmp_path, snapshot_every=5, retention=Retention(versions=8))
    slow, quick = Replica(run.log), Replica(run.log)
    run.publish(4)
    quick.catch_up()
    run.publish(15)
    assert (run.log.oldest(), run.log.newest_snapshot(), run.log.head()) == (10, 15, 19)
    assert names(tmp_path, "updates") == list(range(11, 20))
    assert names(tmp_path, "snapshots") == run.log.snapshots() == [10, 15]
    for replica in (slow, quick, Replica(run.log)):
        replica.catch_up()
        assert (replica.version, replica.full_digest()) == (19, run.digest())
    run.publish(1)  # the buffer that was not loaded is copied
    assert slow.advance() == len(run.blobs[-1])
    run.publish(1)
    slow.advance()
    assert slow.full_digest() == run.digest()


def test_a_run_that_starts_again_on_its_trimmed_log_writes_nothing_twice(tmp_path):
    first = Run(tmp_path, retention=Retention(versions=1))
    first.publish(12)
    first.owner.release()
    second = Run(tmp_path, retention=Retention(versions=1))
    second.publish(14)
    assert names(tmp_path, "updates") == [11, 12, 13, 14]
    assert names(tmp_path, "snapshots") == [10]
    replica = Replica(second.log)
    replica.catch_up()
    assert replica.full_digest() == second.digest()


def test_without_its_snapshot_nothing_is_trimmed(tmp_path):
    run = Run(tmp_path)
    run.publish(12)
    (tmp_path / "snapshots" / f"{10:012d}.safetensors").unlink()
    with pytest.raises(LogError, match="nothing is trimmed"):
        run.log.trim(Retention(versions=1), run.owner)
    assert names(tmp_path, "updates") == list(range(1, 13))


def test_a_writer_killed_while_it_trims_leaves_a_log_that_serves(tmp_path):
    run = Run(tmp_path)
    run.publish(12)
    run.owner.release()
    code = (
        "import os, sys\n"
        "from cdl_jax.deploy import Retention, open_log\n"
        "log = open_log(sys.argv[1]); owner = log.claim()\n"
        "log._objects.delete = lambda keys: os._exit(9)\n"
        "log.trim(Retention(versions=1), owner)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    log = open_log(str(tmp_path))
    replica = Replica(log)
    replica.catch_up()
    assert (log.oldest(), replica.version, replica.full_digest()) == (10, 12, run.digest())
    with log.claim() as owner:
        assert log.trim(Retention(versions=1), owner) == 10
    assert names(tmp_path, "updates") == [11, 12]


def test_snapshots_come_by_bytes_too(tmp_path):
    run = Run(tmp_path, snapshot_every=1000, snapshot_bytes=1500)
    run.publish(20)
    sizes, since, expected = [len(b) for b in run.blobs], 0, [0]
    for version, size in enumerate(sizes, 1):
        due = since >= 1500
        since = 0 if due else since + size
        expected += [version] if due else []
    assert run.log.snapshots() == expected
    assert len(expected) > 2


def test_catching_up_does_not_read_what_was_trimmed_or_lies_before_the_snapshot(tmp_path):
    run = Run(tmp_path, retention=Retention(versions=1), snapshot_every=10)
    run.publish(32)
    asked = []
    log = open_log(str(tmp_path))
    read, log.read = log.read, lambda v: asked.append(v) or read(v)
    Replica(log).catch_up()
    assert asked == [31, 32, 33]


def test_age_is_counted_from_when_an_update_was_written(tmp_path):
    run = Run(tmp_path)
    run.publish(6)
    time.sleep(0.3)
    run.publish(6)
    assert run.log.trim(Retention(seconds=60), run.owner) == 0
    assert run.log.trim(Retention(seconds=0.25), run.owner) in (5, 10)
    assert np.isfinite(run.log.oldest())
