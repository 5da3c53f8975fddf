"""Full retraining, the frozen model, the paper's order, and models that runs share."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from cdl_jax.data import load
from cdl_jax.deploy import Replica, open_log
from cdl_jax.errors import ConfigError
from cdl_jax.models import classifier, create_model
from cdl_jax.train import TrainConfig, beginning
from cdl_jax.train.initial import fit, fit_step
from cdl_jax.train.strategies import plan
from tests.train import small
from tests.train.small import metrics

QUICK = TrainConfig(initial_samples=96, epochs=2, limit=80, batch_size=32, digest_every=1)
go = functools.partial(small.go, QUICK)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def served(path, at=None):
    replica = Replica(open_log(str(path / "log")), at=at)
    with replica.lease() as lease:
        return jax.tree.map(np.array, lease.tree["params"])


def test_full_retraining_serves_a_model_trained_from_scratch_on_all_samples_so_far(tmp_path):
    summary = go(tmp_path, strategy="full", trigger=40)
    assert [x["position"] for x in metrics(tmp_path)] == [136, 176]
    data, config = load("digits"), dataclasses.replace(QUICK, strategy="full").checked()
    model = classifier(create_model("lenet5"), (data.mean, data.std))
    step = fit_step(model.loss_fn, plan(config).optimizer)
    start = beginning.untrained(config, data, model)
    for version, count in ((1, 136), (2, 176)):
        alone = fit(start, data.batch, count, step, epochs=2, batch_size=32, seed=0)
        jax.tree.map(np.testing.assert_array_equal, served(tmp_path, version), alone.params)
    assert summary.full_digests == 2


def test_the_frozen_model_stays_and_is_scored(tmp_path):
    summary = go(tmp_path, strategy="frozen", trigger=40)
    jax.tree.map(np.testing.assert_array_equal, served(tmp_path), served(tmp_path, 0))
    assert summary.accuracy == summary.frozen_accuracy > 0
    assert [x["entries"] for x in metrics(tmp_path)] == [0, 0]


def test_the_paper_s_order_changes_more_than_the_compressor_sends(tmp_path):
    go(tmp_path / "before", trigger=8, order="before", density=0.001)
    go(tmp_path / "after", trigger=8, order="after", density=0.001)
    before, after = ([x["entries"] for x in metrics(tmp_path / p)] for p in ("before", "after"))
    assert after == [67] * 10
    # Adam's moments move whatever they have met, already in the initial training.
    assert min(before) > 10_000


def test_runs_that_begin_alike_share_one_initial_model(tmp_path, monkeypatch):
    shared = str(tmp_path / "initial")
    one = go(tmp_path / "one", trigger=8, initial=shared)
    alone = go(tmp_path / "alone", trigger=8)
    assert one.digest == alone.digest
    with monkeypatch.context() as patch:
        patch.setattr(beginning, "fit", lambda *a, **k: pytest.fail("it was trained again"))
        assert go(tmp_path / "two", trigger=8, initial=shared).digest == one.digest
        assert go(tmp_path / "dense", strategy="proactive", initial=shared).versions == 10
    other = go(tmp_path / "other", trigger=8, initial=shared, epochs=1)
    assert other.digest != one.digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"order": "before", "values": "int8"}, "sent exactly; give float32"),
     ({"strategy": "full", "label_delay": 3}, "takes no label_delay 3; leave it out, or")],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(QUICK, **changes).checked()
