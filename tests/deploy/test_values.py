"""Every form of values: the replica is the trainer at every version, and at that one alone."""

import jax
import numpy as np
import optax
import pytest

import cdl_jax
from cdl_jax.core.rounding import BITS
from cdl_jax.deploy import Replica, jax_model
from cdl_jax.errors import RefusedUpdateError
from cdl_jax.wire import decode_update
from tests.deploy import small
from tests.deploy.small import MODELS, Run, batch, new_state

both = pytest.mark.parametrize("backend", ["numpy", "jax"])


@pytest.mark.parametrize("values", ["f16", "int8", "int2"])
def test_replicas_are_the_trainer_at_every_version(tmp_path, values):
    run = Run(tmp_path, values=values)
    replicas = [Replica(run.log, model) for model in MODELS.values()]
    for _ in range(8):
        run.publish()
        for replica in replicas:
            replica.advance()
            assert replica.full_digest() == run.digest()
    update = decode_update(run.blobs[-1])
    scaled = [scale is not None for scale in update.section_scales()]
    assert any(scaled) == (values in BITS)


@both
def test_levels_are_refused_anywhere_but_at_their_base(tmp_path, backend):
    run = Run(tmp_path, values="int4", snapshot_every=100)
    run.publish(3)
    replica = Replica(run.log, MODELS[backend])
    replica.apply(run.blobs[0])
    before = replica.full_digest()
    for other in (run.blobs[0], run.blobs[2]):
        with pytest.raises(RefusedUpdateError, match="the next one is 2"):
            replica.apply(other)
    skipped = Replica(run.log, MODELS[backend])  # still at version 0, made to believe it is at 1
    skipped._buffers.front.version = 1
    with pytest.raises(RefusedUpdateError, match="leads to the digest"):
        skipped.apply(run.blobs[1])
    assert replica.full_digest() == before
    assert replica.catch_up() == 2
    assert replica.full_digest() == run.digest()


@both
def test_levels_under_global_scope(tmp_path, backend, monkeypatch):
    def all_of_float32(tx):
        state = new_state(tx_of_any)
        params = state.params | {"c": state.params["c"].astype(np.float32)}
        return cdl_jax.init_state(params, tx, model_state=state.model_state)

    tx_of_any = optax.sgd(1.0)
    monkeypatch.setattr(small, "new_state", all_of_float32)
    run = Run(tmp_path, values="int8", scope="global")
    replica = Replica(run.log, MODELS[backend])
    run.publish(6)
    assert replica.catch_up() == 6
    assert replica.full_digest() == run.digest()


def test_a_jax_replica_compiles_levels_before_the_first_update(tmp_path):
    run = Run(tmp_path, values="int2")
    replica = Replica(run.log, MODELS["jax"])
    compiled = jax_model._together._cache_size()
    run.publish(2)
    replica.catch_up()
    assert jax_model._together._cache_size() == compiled
    assert replica.full_digest() == run.digest()


def test_a_skipped_step_sends_no_levels(tmp_path):
    run = Run(tmp_path, values="int4")
    run.publish(1)
    bad = {name: np.full_like(x, np.nan) for name, x in batch(1).items()}
    run.state, info = run.step(run.state, None, bad)
    run.publisher.publish(jax.device_get(info.update))
    replica = Replica(run.log)
    assert replica.catch_up() == 2
    assert replica.full_digest() == run.digest()
