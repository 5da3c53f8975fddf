"""The logs that the deployment benchmarks replay."""

import numpy as np
import pytest

from cdl_jax.core import digest as digests
from cdl_jax.core.layout import LeafSpec, TreeSpec
from cdl_jax.deploy import Replica, open_log
from cdl_jax.deploy.replica import model_factory
from cdl_jax.wire import decode_update
from experiments.deploy import recorded


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_a_recorded_log_is_followed(tmp_path, backend):
    leaves = (LeafSpec("model_state/m", (7,), "float32"), LeafSpec("params/w", (50, 3), "float32"))
    rng = np.random.default_rng(0)
    tensors = {x.name: rng.standard_normal(x.shape).astype(np.float32) for x in leaves}
    made = recorded.record(TreeSpec(leaves), tensors, versions=4, density=0.1, seed=0)
    log = open_log(str(tmp_path), create=True)
    with log.claim() as owner:
        recorded.begin(log, owner, made)
        replica = Replica(log, model_factory(backend))
        for version, blob in enumerate(made.updates, 1):
            log.append(version, blob, owner)
        assert replica.catch_up() == 4
        assert replica.full_digest() == digests.to_hex(decode_update(made.updates[-1]).digest)
        log.write_snapshot(4, made.newest, owner)
        assert Replica(log, model_factory(backend)).full_digest() == replica.full_digest()
