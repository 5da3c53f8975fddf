import jax
import numpy as np

import cdl_jax
from cdl_jax.data import DATASETS
from cdl_jax.deploy import Publisher, Replica, open_log
from cdl_jax.deploy.gate import HeldOut
from cdl_jax.deploy.serve import application
from cdl_jax.models import classifier, create_model
from tests.deploy.serving import config


def lenet5():
    return classifier(create_model("lenet5"), (DATASETS["digits"].mean, DATASETS["digits"].std))


def published(path, model):
    """A log as `cdl-jax train` begins it, of a model that keeps no statistics."""
    params, model_state = model.init_fn(jax.random.key(0), np.zeros((1, 28, 28, 1), np.uint8))
    assert not jax.tree.leaves(model_state)
    log = open_log(str(path), create=True)
    tree = {"params": params, "model_state": model_state}
    with log.claim() as owner:
        Publisher.begin(log, owner, tree, config={"model": "lenet5", "dataset": "digits"})
    return log, tree


def test_a_built_in_model_without_statistics_is_served(tmp_path):
    log, tree = published(tmp_path, lenet5())
    replica = Replica(log)
    settings = config(tmp_path, predict=None, max_batch=2)
    with application(settings, log, replica, None):
        pass
    assert replica.full_digest() == cdl_jax.tree_digest(tree)


def test_a_gate_takes_a_model_without_statistics(tmp_path):
    log, _ = published(tmp_path, lenet5())
    gate = HeldOut(lenet5().predict_fn, np.zeros((10, 28, 28, 1), np.uint8), range(10))
    with Replica(log).lease() as lease:
        assert gate(lease.tree) is None
    assert gate.best == 0.1
