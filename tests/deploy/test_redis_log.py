import threading
import time

import pytest

from cdl_jax.deploy import FailurePolicy, Replica, Retention, open_log
from cdl_jax.deploy.rollback import RollbackConfig, rollback
from cdl_jax.errors import LogError, OwnershipError, StoreError
from tests.deploy.broker import Broker, needs_redis
from tests.deploy.small import Run

pytestmark = needs_redis


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path / "broker")
    yield broker
    broker.kill()


def wait_policy():
    return FailurePolicy(on_failure="wait", patience=10)


def test_the_broker_itself_refuses_what_is_out_of_order(broker):
    import redis

    run = Run(broker.url())
    run.publish(3)
    stream = redis.Redis(port=broker.port)
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        stream.xadd("log", {"u": b"x", "t": "0"}, id="3-0")
    assert [i for i, _ in stream.xrange("log")] == [b"1-0", b"2-0", b"3-0"]
    with pytest.raises(LogError, match="lost version 4"):
        run.log.append(5, b"x", run.owner)  # never a gap


def test_versions_travel_and_are_trimmed_behind_a_snapshot(broker):
    run = Run(broker.url(), retention=Retention(versions=8))
    late = Replica(open_log(broker.url()))
    run.publish(12)
    log = open_log(broker.url())
    assert (log.head(), log.newest_snapshot(), log.oldest()) == (12, 10, 5)
    assert (log.read(5), log.read(6), log.read(13)) == (None, run.blobs[5], None)
    assert abs(log.written_at(12) - time.time()) < 10
    assert log.written_at(13) is None
    for replica in (late, Replica(log)):
        replica.catch_up()
        assert replica.full_digest() == run.digest()
    run.log.append(12, run.blobs[-1], run.owner)  # a write whose answer was lost
    with pytest.raises(LogError, match="another update already"):
        run.log.append(12, b"other", run.owner)


def test_replicas_go_back_by_a_new_version(broker):
    run = Run(broker.url())
    run.publish(2)
    wanted = run.digest()
    run.publish(5)
    replicas = [Replica(run.log) for _ in range(2)]
    replicas[0].catch_up()
    run.owner.release()
    rollback(RollbackConfig(log=broker.url(), to=2))
    for replica in replicas:
        replica.catch_up()
        assert (replica.version, replica.full_digest()) == (8, wanted)


def test_age_and_bytes_trim_too(broker):
    run = Run(broker.url())
    run.publish(12)
    assert run.log.trim(Retention(seconds=60), run.owner) == 0
    sizes = sum(map(len, run.blobs[5:]))
    snapshots = 2 * len(run.log.read_snapshot(5))
    assert run.log.trim(Retention(bytes=sizes + snapshots + 10), run.owner) == 5
    assert run.log.trim(Retention(seconds=1e-6), run.owner) == 10


def test_a_writer_that_lost_the_log_is_fenced_by_the_broker(broker):
    run = Run(broker.url())
    run.publish(2)
    run.owner.release()
    run.owner.ensure = lambda: None  # it does not know yet
    with open_log(broker.url()).claim() as second:
        log = open_log(broker.url())
        log.append(3, b"by the second", second)
        with pytest.raises(OwnershipError, match="took over"):
            run.log.append(3, b"by the first", run.owner)
    assert log.read(3) == b"by the second"


def test_a_reader_is_woken_by_the_next_version(broker):
    run = Run(broker.url())
    log = open_log(broker.url())
    begun = time.monotonic()
    log.wait(1, 0.2)
    assert 0.15 < time.monotonic() - begun < 2
    publishing = threading.Timer(0.2, run.publish)
    publishing.start()
    begun = time.monotonic()
    log.wait(1, 2.4)
    assert time.monotonic() - begun < 2
    publishing.join()  # before the broker goes
    assert log.read(1) is not None


@pytest.mark.parametrize("with_data", [False, True])
def test_a_broker_that_was_killed_gets_back_what_it_lost(broker, with_data):
    run = Run(broker.url(), on_failure=wait_policy())
    replica, idle = Replica(open_log(broker.url())), Replica(open_log(broker.url()))
    run.publish(7)
    replica.catch_up()
    broker.kill(with_data=with_data)
    threading.Timer(0.5, broker.start).start()
    run.publish(1)  # waits for the broker
    assert run.publisher.outbox.failures > 0 or run.log.head() == 8
    for version in (6, 7, 8):
        assert run.log.read(version) == run.blobs[version - 1]
    run.publish(4)
    for reader in (replica, idle, Replica(open_log(broker.url()))):
        reader.catch_up()
        assert (reader.version, reader.full_digest()) == (12, run.digest())


def test_a_run_that_starts_again_after_the_broker_lost_all_goes_on(broker):
    first = Run(broker.url())
    first.publish(7)
    first.owner.release()
    broker.kill(with_data=True)
    broker.start()
    second = Run(broker.url())
    second.publish(9)
    assert second.blobs[:7] == first.blobs
    replica = Replica(open_log(broker.url()))
    assert replica.version == 5
    replica.catch_up()
    assert replica.full_digest() == second.digest()


def test_a_broker_out_of_reach_is_one_sentence(broker):
    log = open_log(broker.url(), create=True)
    broker.kill()
    for deed in (lambda: log.read(1), lambda: log.wait(1, 0.1), lambda: log.written_at(1)):
        with pytest.raises(StoreError, match="cannot read the log redis://127.0.0.1") as caught:
            deed()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "word"),
    [("redis://h/name", "no store for snapshots"), ("redis://h/?store=/tmp", "no stream"),
     ("redis://h/name?store=/tmp&db=x", "cannot open"), ("redis://h/n?store=/none", "no log at")],
)  # fmt: skip
def test_a_url_that_cannot_be_is_refused(url, word):
    with pytest.raises(LogError, match=word):
        open_log(url)


def test_a_password_is_in_no_message():
    with pytest.raises(LogError) as caught:
        open_log("redis://me:secret@h/name")
    assert "secret" not in str(caught.value)
    assert open_log("redis://me:secret@h/n?store=/tmp").name == "redis://h:6379/n"
