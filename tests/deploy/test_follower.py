import os
import sys
import threading
import time

import pytest

from cdl_jax.deploy import Replica
from cdl_jax.deploy.follower import NICENESS, Follower
from cdl_jax.deploy.metrics import Metrics
from tests.deploy.small import Run


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no nice value")
def test_updates_give_way_to_requests(tmp_path):
    run = Run(tmp_path)
    follower = Follower(Replica(run.log), run.log, Metrics())
    try:
        run.publish()
        deadline = time.monotonic() + 10
        while follower._replica.version < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        thread = follower._threads[0].native_id
        assert thread is not None
        assert os.getpriority(os.PRIO_PROCESS, thread) >= NICENESS
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        assert own == os.getpriority(os.PRIO_PROCESS, os.getpid()) < NICENESS
    finally:
        follower.close()


def test_a_refused_update_counts_where_a_snapshot_made_it_good(tmp_path):
    run, metrics = Run(tmp_path, snapshot_every=5), Metrics()
    run.publish(5)
    path = tmp_path / "updates" / f"{3:012d}"
    path.write_bytes(path.read_bytes()[:-1])
    replica = Replica(run.log, at=0)
    replica.pin(None)
    follower = Follower(replica, run.log, metrics)
    try:
        deadline = time.monotonic() + 10
        while replica.version < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (replica.version, follower.last_error) == (5, None)
    finally:
        follower.close()
    assert 'cdl_refused_updates_total{reason="damaged"} 1.0' in metrics.text().decode()
