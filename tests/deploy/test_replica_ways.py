"""Pinned versions, gates, jumps, and failures in the middle of a write."""

import time

import jax
import numpy as np
import pytest

from cdl_jax.deploy import Replica, Retention
from cdl_jax.deploy.gate import HeldOut
from cdl_jax.errors import LogError, StoreError
from tests.deploy.small import MODELS, Run

both = pytest.mark.parametrize("backend", ["numpy", "jax"])


def published(path, count, **settings):
    """A run and the digest of each of its versions."""
    run = Run(path, **settings)
    digests = [run.digest()]
    for _ in range(count):
        run.publish()
        digests.append(run.digest())
    return run, digests


@both
def test_a_pinned_replica_stays_and_goes_to_any_version(tmp_path, backend):
    run, digests = published(tmp_path, 13)
    replica = Replica(run.log, MODELS[backend], at=7)
    assert (replica.version, replica.advance(), replica.full_digest()) == (7, None, digests[7])
    for version in (12, 3, 5, 13, 0, 6):
        replica.pin(version)
        assert replica.catch_up() == 0
        assert (replica.version, replica.full_digest()) == (version, digests[version])
    replica.pin(None)
    replica.catch_up()
    assert (replica.version, replica.full_digest()) == (13, digests[13])


def test_a_version_that_the_log_does_not_hold_leaves_all_as_it_was(tmp_path):
    run, digests = published(tmp_path, 12, retention=Retention(versions=8))
    replica = Replica(run.log)
    replica.catch_up()
    for version in (4, 13):
        with pytest.raises(LogError, match=f"does not hold version {version}: it has 5 to 12"):
            replica.pin(version)
    assert (replica.version, replica.full_digest(), replica.pinned) == (12, digests[12], None)
    run.publish(1)
    replica.catch_up()
    assert replica.version == 13


@both
def test_a_gate_holds_versions_back_until_one_passes(tmp_path, backend):
    run = Run(tmp_path)
    shut = set(range(3, 9)) | {10}

    def gate(tree):
        seen.append(np.asarray(tree["params"]["c"]).tobytes())
        return "too bad" if len(seen) - 1 in shut else None  # the first is the snapshot's

    seen = []
    replica, served = Replica(run.log, MODELS[backend], gate=gate), []
    plain = Replica(run.log, MODELS[backend])
    for version in range(1, 15):
        run.publish()
        before = replica.full_digest()
        assert replica.advance()
        plain.advance()
        served.append(replica.version)
        if version in shut:
            assert replica.full_digest() == before
            assert replica.held_back == f"version {version}: too bad"
        else:
            assert replica.full_digest() == plain.full_digest() == run.digest()
            assert replica.held_back is None
    assert served == [1, 2, 2, 2, 2, 2, 2, 2, 9, 9, 11, 12, 13, 14]


def test_a_gate_that_fails_lets_nothing_pass(tmp_path):
    run = Run(tmp_path)
    replica = Replica(run.log, gate=lambda tree: tree["nothing"])
    run.publish(2)
    replica.catch_up()
    assert replica.version == 0
    assert "KeyError" in (replica.held_back or "")


def test_held_out_samples_must_not_get_worse_than_the_best_by_more_than_the_bound():
    inputs = np.eye(10, dtype=np.float32)
    gate = HeldOut(lambda p, s, x: x + p["b"] * s, inputs, np.arange(10), bound=0.1)

    def tree(wrong):
        bias = np.zeros((10, 10), np.float32)
        bias[:wrong, 9] = 2
        return {"params": {"b": bias}, "model_state": 1.0}

    assert gate(tree(2)) is None
    assert gate(tree(3)) is None  # 0.7 against 0.8
    assert "0.6000 of 10 held-out" in (gate(tree(4)) or "")
    assert gate(tree(0)) is None
    assert gate(tree(2)) is not None  # no slow decline
    nan = tree(0)
    nan["params"]["b"][3, 3] = np.nan
    assert gate(nan) is not None
    with pytest.raises(ValueError, match="no held-out samples"):
        HeldOut(lambda *_: None, inputs, [])
    with pytest.raises(ValueError, match="bound is 2"):
        HeldOut(lambda *_: None, inputs, [1], bound=2)


@both
def test_a_write_that_fails_half_way_is_never_served(tmp_path, backend, monkeypatch):
    run, digests = published(tmp_path, 9)
    replica = Replica(run.log, MODELS[backend], at=0)
    replica.pin(None)
    model, write = MODELS[backend], MODELS[backend].write
    monkeypatch.setattr("cdl_jax.deploy.replica._FAR_BEHIND", 10**6)
    assert replica.advance()
    for done in (0, 1, 2):  # nothing, what the spare buffer missed, the new update too

        def half(self, plans, digest, done=done):
            monkeypatch.setattr(model, "write", write)
            write(self, plans[:done], digest) if done else None
            raise MemoryError("half way")

        monkeypatch.setattr(model, "write", half)
        before = replica.version
        with pytest.raises(MemoryError):
            replica.advance()
        assert replica.version == before
        for _ in range(2):
            assert replica.full_digest() == digests[replica.version]
            assert replica.advance()
    replica.catch_up()
    assert replica.full_digest() == digests[9]


@both
def test_many_versions_held_back_are_copied_not_replayed(tmp_path, backend, monkeypatch):
    monkeypatch.setattr("cdl_jax.deploy.buffers._MOST_MISSED", 3)
    run = Run(tmp_path)
    shut = [True]
    replica = Replica(run.log, MODELS[backend], gate=lambda _: "no" if shut[0] else None)
    shut[0] = True
    run.publish(7)
    replica.catch_up()
    assert replica.version == 0
    shut[0] = False
    for _ in range(3):
        run.publish(1)
        replica.catch_up()
        assert replica.full_digest() == run.digest()


def test_far_behind_the_newest_snapshot_is_loaded_instead(tmp_path, monkeypatch):
    monkeypatch.setattr("cdl_jax.deploy.replica._FAR_BEHIND", 8)
    monkeypatch.setattr("cdl_jax.deploy.replica._LOOK_SECONDS", 0)
    run = Run(tmp_path)
    replica = Replica(run.log)
    run.publish(7)
    assert replica.advance() == len(run.blobs[0])  # the snapshot of 5 is not far
    run.publish(5)
    assert replica.advance() == 0
    assert replica.version == 10
    replica.catch_up()
    assert replica.full_digest() == run.digest()


def test_a_store_that_fails_leaves_the_replica_serving(tmp_path):
    run, digests = published(tmp_path, 3)
    replica = Replica(run.log)
    replica.catch_up()
    folder = tmp_path / "updates"
    folder.rename(tmp_path / "away")
    folder.write_text("")
    with pytest.raises(StoreError):
        replica.advance()
    assert replica.full_digest() == digests[3]
    folder.unlink()
    (tmp_path / "away").rename(folder)
    run.publish(1)
    replica.catch_up()
    assert replica.full_digest() == run.digest()


def test_a_lease_names_the_version_and_digest_that_its_tree_has(tmp_path):
    from cdl_jax.core.digest import to_hex
    from cdl_jax.core.update import tree_digest

    run, _ = published(tmp_path, 2)
    replica = Replica(run.log)
    replica.catch_up()
    with replica.lease() as lease:
        assert lease.version == 2
        assert to_hex(lease.digest) == tree_digest(jax.tree.map(np.asarray, lease.tree))


@both
def test_a_lease_that_has_ended_gives_no_later_version(tmp_path, backend):
    run, _ = published(tmp_path, 3)
    replica = Replica(run.log, MODELS[backend], at=0)
    with replica.lease() as lease:
        assert lease.predict(lambda params, state, x: x, 5) == 5
    replica.pin(None)
    for _ in range(3):
        replica.advance()
    with pytest.raises(RuntimeError, match="lease of version 0 has ended"):
        _ = lease.tree
    with pytest.raises(RuntimeError, match="lease of version 0 has ended"):
        lease.predict(lambda params, state, x: x, 5)


def test_a_damaged_snapshot_is_passed_over_for_an_older_one(tmp_path):
    run, digests = published(tmp_path, 13)
    for version in (10, 5):
        path = tmp_path / "snapshots" / f"{version:012d}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        replica = Replica(run.log)
        assert replica.version == version - 5
        replica.catch_up()
        assert replica.full_digest() == digests[13]


def test_waiting_is_for_what_comes_next_not_for_what_is_held_back(tmp_path):
    run = Run(tmp_path)
    shut = Replica(run.log, gate=lambda _: "no")
    pinned, free = Replica(run.log, at=0), Replica(run.log)
    run.publish(2)
    shut.catch_up()

    def seconds(replica):
        begun = time.monotonic()
        replica.wait(0.3)
        return time.monotonic() - begun

    assert seconds(shut) >= 0.3
    assert seconds(pinned) >= 0.3
    assert seconds(free) < 0.2
