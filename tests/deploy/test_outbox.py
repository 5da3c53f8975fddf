"""A store that fails: what the writer does, and what readers see."""

import os
import resource
import shutil
import subprocess
import sys
import time

import pytest

from cdl_jax.deploy import FailurePolicy, Replica, open_log
from cdl_jax.errors import ConfigError, OwnershipError, StoreError
from tests.deploy.small import Run


class Broken:
    """Makes a folder's updates unwritable, as a lost mount does, and mends it again."""

    def __init__(self, path):
        self._path, self._aside = path / "updates", path / "aside"

    def __enter__(self):
        if self._path.exists():
            self._path.rename(self._aside)
        self._path.write_text("")

    def __exit__(self, *_):
        self._path.unlink()
        if self._aside.exists():
            self._aside.rename(self._path)


def policy(kind, patience=5.0, memory=1 << 20):
    return FailurePolicy(on_failure=kind, patience=patience, memory=memory)


def test_stop_raises_one_sentence_and_the_log_stays_as_it_was(tmp_path):
    run = Run(tmp_path)
    run.publish(3)
    with Broken(tmp_path), pytest.raises(StoreError, match="cannot write .*versions from 4 on"):
        run.publish(1)
    replica = Replica(run.log)
    assert (replica.catch_up(), run.log.head()) == (3, 3)


def test_wait_goes_on_once_the_store_is_back(tmp_path):
    import threading

    run = Run(tmp_path, on_failure=policy("wait"))
    run.publish(3)
    broken = Broken(tmp_path)
    broken.__enter__()
    threading.Timer(0.4, broken.__exit__).start()
    begun = time.monotonic()
    run.publish(1)
    assert time.monotonic() - begun > 0.3
    assert (run.log.head(), run.publisher.outbox.empty) == (4, True)
    assert run.publisher.outbox.failures > 1


def test_wait_gives_up_after_its_patience(tmp_path):
    run = Run(tmp_path, on_failure=policy("wait", 0.2))
    with Broken(tmp_path), pytest.raises(StoreError, match="versions from 1 on are not in the log"):
        run.publish(1)


def test_go_on_trains_and_publishes_in_order_later(tmp_path):
    run = Run(tmp_path, on_failure=policy("go_on"))
    run.publish(3)
    replica, written, append = Replica(run.log), [], run.log.append
    run.log.append = lambda version, *rest: (append(version, *rest), written.append(version))
    with Broken(tmp_path):
        run.publish(9)
        assert not run.publisher.outbox.empty
        with pytest.raises(StoreError, match="cannot read"):
            replica.catch_up()
        assert replica.full_digest()  # and serves on
        assert run.log.newest_snapshot() == 0  # never a snapshot before the update it stands on
    run.publisher.outbox.flush()
    assert (run.log.head(), run.log.newest_snapshot()) == (12, 10)
    assert written == list(range(4, 13))
    replica.catch_up()
    assert replica.full_digest() == run.digest()


def test_go_on_keeps_no_more_than_its_memory(tmp_path):
    run = Run(tmp_path, on_failure=policy("go_on", 0.1, memory=2000))
    with Broken(tmp_path), pytest.raises(StoreError, match="not in the log"):
        run.publish(30)
    waiting = sum(parcel.size for parcel in run.publisher.outbox._waiting)
    assert 2000 < waiting < 12_000


def test_a_writer_that_lost_its_log_stops_under_every_policy(tmp_path):
    for kind in ("stop", "wait", "go_on"):
        run = Run(tmp_path / kind, on_failure=policy(kind))
        run.owner.release()
        with open_log(str(tmp_path / kind)).claim(), pytest.raises(OwnershipError):
            run.publish(1)


def test_a_policy_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="log_patience is -1"):
        FailurePolicy(patience=-1)


def test_a_full_disk_leaves_no_half_written_version(tmp_path):
    """RLIMIT_FSIZE cuts a write in its middle, as a full disk does."""
    run = Run(tmp_path)
    run.publish(3)
    size = len(run.blobs[-1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(StoreError, match="cannot write"):
            run.publish(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.log.read(4) is None
    replica = Replica(run.log)
    assert (replica.catch_up(), replica.version) == (3, 3)
    run.publisher.outbox.flush()
    replica.catch_up()
    assert replica.full_digest() == run.digest()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without permission")
@pytest.mark.parametrize("deed", ["log.claim()", "log.append(1, b'x', owner)"])
def test_lost_permission_is_one_sentence(tmp_path, deed):
    Run(tmp_path).owner.release()
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o555)
    code = (
        "import os, sys; from cdl_jax.deploy import open_log\n"
        "log = open_log(sys.argv[1])\n"
        f"owner = {deed.startswith('log.append')} and log.claim()\n"
        "os.seteuid(65534)\n"
        f"{deed}"
    )
    place = shutil.copytree(tmp_path, "/tmp/cdl_jax-permission", dirs_exist_ok=True)
    try:
        done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True)
    finally:
        shutil.rmtree(place)
    assert "StoreError: cannot write the log" in done.stderr
    assert "ermission denied" in done.stderr
