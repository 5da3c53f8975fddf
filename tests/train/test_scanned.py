"""Many triggers under one program: the same stream, the same promises."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from cdl_jax.deploy import Replica, open_log
from cdl_jax.errors import ConfigError
from cdl_jax.train import TrainConfig
from tests.train import small
from tests.train.small import metrics

QUICK = TrainConfig(
    initial_samples=128, epochs=1, limit=84, trigger=8, batch_size=32, density=0.01,
    snapshot_every=100, digest_every=0, checkpoint_every=100, scan=4,
)  # fmt: skip
go = functools.partial(small.go, QUICK)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def served(path):
    replica = Replica(open_log(str(path / "log")))
    replica.catch_up()
    with replica.lease() as lease:
        leaves = [np.array(x) for x in jax.tree.leaves(lease.tree)]
    return replica.full_digest(), leaves


def test_a_scanned_run_is_followed_to_the_bit_and_learns_what_steps_learn(tmp_path):
    summary = go(tmp_path / "scan")
    stepped = go(tmp_path / "steps", scan=1)
    assert summary.versions == stepped.versions == 11
    digest, leaves = served(tmp_path / "scan")
    assert digest == summary.digest
    for ours, theirs in zip(leaves, served(tmp_path / "steps")[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    rows = zip(metrics(tmp_path / "scan"), metrics(tmp_path / "steps"), strict=True)
    for ours, theirs in rows:
        for name in ("version", "position", "samples", "entries"):
            assert ours[name] == theirs[name]
        assert ours["prequential_loss"] == pytest.approx(theirs["prequential_loss"], rel=1e-3)


def test_where_a_scanned_run_is_cut_changes_no_bit(tmp_path):
    whole = go(tmp_path / "whole")
    # Blocks end at each version that is hashed, kept or written whole; and where the run stops.
    cut = go(tmp_path / "cut", digest_every=3, checkpoint_every=5, snapshot_every=2)
    assert cut.digest == whole.digest
    assert cut.full_digests == 3
    go(tmp_path / "stopped", limit=24)
    assert go(tmp_path / "stopped").digest == whole.digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"strategy": "online"}, "strategy 'online'"), ({"on_drift": "reset"}, "on_drift"),
     ({"initial_samples": 20}, "do not fill a batch of 32"), ({"scan": 0}, "give 1 or more")],
)  # fmt: skip
def test_what_cannot_be_scanned_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(QUICK, **changes).checked()
