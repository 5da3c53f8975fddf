import threading

import jax
import numpy as np
import pytest
import xxhash

import cdl_jax
from cdl_jax.core import digest as digests
from cdl_jax.deploy import Replica, jax_model
from cdl_jax.deploy.jax_model import JaxModel
from cdl_jax.errors import LogError, RefusedUpdateError
from cdl_jax.wire import encode_update
from tests.deploy.small import MODELS, Run, batch

both = pytest.mark.parametrize("backend", ["numpy", "jax"])


def as_bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@both
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_replica_is_the_trainer_at_every_version(tmp_path, backend, scope):
    run = Run(tmp_path, scope=scope)
    replica = Replica(run.log, MODELS[backend])
    for version in range(1, 25):
        run.publish()
        assert replica.advance() == len(run.blobs[-1])
        assert replica.version == version
        assert replica.full_digest() == run.digest()
        with replica.lease() as lease:
            assert as_bits(lease.tree) == as_bits(dict(sorted(deployed(run).items())))
    assert replica.advance() is None


def deployed(run):
    return cdl_jax.deployed(run.state)


@both
@pytest.mark.parametrize("update", ["dense", "changed"])
def test_dense_and_changed_updates_share_the_log(tmp_path, backend, update):
    run = Run(tmp_path, update=update)
    replica = Replica(run.log, MODELS[backend])
    run.publish(8)
    assert replica.catch_up() == 8
    assert replica.full_digest() == run.digest()


@both
def test_a_late_replica_starts_from_the_newest_snapshot(tmp_path, backend):
    run = Run(tmp_path)
    run.publish(13)
    replica = Replica(run.log, MODELS[backend])
    assert replica.version == 10
    assert replica.catch_up() == 3
    assert replica.full_digest() == run.digest()


@both
def test_a_lease_keeps_its_version_while_others_come(tmp_path, backend):
    run = Run(tmp_path)
    run.publish(3)
    replica = Replica(run.log, MODELS[backend])
    replica.catch_up()
    with replica.lease() as lease:
        before = as_bits(lease.tree)
        run.publish(1)
        replica.advance()
        assert (lease.version, replica.version) == (3, 4)
        assert as_bits(lease.tree) == before
        run.publish(1)
        waiting = threading.Thread(target=replica.advance)  # the leased buffer is its spare one
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert as_bits(lease.tree) == before
    waiting.join(10)
    assert replica.version == 5
    assert replica.full_digest() == run.digest()


def everything(replica):
    tensors = replica._buffers.front.model.tensors()
    return as_bits(tensors), replica.version, replica.digest.tolist()


def refused(replica, blob, word):
    state = everything(replica)
    with pytest.raises(RefusedUpdateError, match=word):
        replica.apply(blob)
    assert everything(replica) == state


@both
def test_what_must_be_refused_is_and_nothing_is_written(tmp_path, backend):
    run, other = Run(tmp_path / "a"), Run(tmp_path / "b")
    run.publish(4)
    other.publish(1)
    replica = Replica(run.log, MODELS[backend])
    refused(replica, run.blobs[1], "version 2, the next one is 1")
    refused(replica, other.blobs[0], "another log's lineage")
    refused(replica, run.blobs[0][:-1], "cut|bytes")
    refused(replica, b"", "not the bytes")
    replica.apply(run.blobs[0])
    refused(replica, run.blobs[0], "version 1, the next one is 2")
    replica.apply(run.blobs[1])
    assert replica.version == 2


@both
def test_a_well_formed_update_with_wrong_content_is_refused(tmp_path, backend):
    run = Run(tmp_path)
    run.publish(1)
    replica = Replica(run.log, MODELS[backend])
    lineage = run.publisher.manifest.lineage
    good = run.blobs[0]

    def changed(at, byte):
        blob = bytearray(good)
        blob[at] ^= byte
        return bytes(blob[:-16]) + xxhash.xxh3_128_digest(bytes(blob[:-16]))

    refused(replica, changed(len(good) - 17, 1), "leads to the digest")  # a value
    refused(replica, changed(60, 1), "leads to the digest")  # the digest it names
    refused(replica, changed(20, 1), "fingerprint")
    from tests.wire.updates import make_update

    fingerprint = run.publisher.manifest.spec.fingerprint
    for sections, word in [
        ([((99,), 10, 2, "float32")], "leaf 99"),
        ([((1,), 10**6, 20, "float32")], "past the end"),
        ([((1,), 10, 2, "float16")], "is float32, its new values float16"),
    ]:
        update = make_update(sections, base=0, fingerprint=fingerprint)
        refused(replica, encode_update(update, lineage=lineage), word)
    replica.apply(good)


def test_memory_changed_from_outside_is_found_by_the_full_digest(tmp_path):
    run = Run(tmp_path)
    run.publish(3)
    replica = Replica(run.log)
    replica.catch_up()
    replica._buffers.front.model._arenas[4][0] ^= 1
    with pytest.raises(RefusedUpdateError, match="in memory"):
        replica.full_digest()


def test_a_damaged_update_is_left_behind_at_the_next_snapshot(tmp_path):
    run = Run(tmp_path)
    run.publish(4)
    path = tmp_path / "updates" / f"{3:012d}"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    replica = Replica(run.log)
    with pytest.raises(RefusedUpdateError, match="checksum"):
        replica.catch_up()
    assert replica.version == 2
    assert "checksum" in (replica.last_error or "")
    run.publish(2)
    replica.catch_up()
    assert (replica.version, replica.last_error) == (6, None)
    assert replica.full_digest() == run.digest()


@both
def test_behind_a_gate_no_snapshot_before_a_refused_update_is_a_way_past_it(tmp_path, backend):
    run, answers = Run(tmp_path), iter([None])  # it lets the first snapshot pass alone
    replica = Replica(run.log, MODELS[backend], gate=lambda _: next(answers, "no"))
    run.publish(7)
    blob = bytearray((tmp_path / "updates" / f"{6:012d}").read_bytes())
    blob[-17] ^= 1
    blob[-16:] = xxhash.xxh3_128_digest(bytes(blob[:-16]))
    (tmp_path / "updates" / f"{6:012d}").write_bytes(blob)
    for _ in range(2):
        with pytest.raises(RefusedUpdateError, match="update 6 .* leads to the digest"):
            replica.catch_up()
        assert replica.version == 0
    run.publish(4)  # a snapshot of version 10 among them
    replica.catch_up()
    assert (replica.held_back, replica.last_error) == ("version 11: no", None)


def test_a_damaged_or_foreign_snapshot_is_named(tmp_path):
    run, other = Run(tmp_path / "a"), Run(tmp_path / "b")
    path = tmp_path / "a" / "snapshots" / f"{0:012d}.safetensors"
    blob = path.read_bytes()
    path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(LogError, match="does not have its digest"):
        Replica(run.log)
    path.write_bytes(other.log.read_snapshot(0))
    with pytest.raises(LogError, match="another log"):
        Replica(run.log)


def test_an_entry_changed_behind_the_trainers_back_never_reaches_the_log(tmp_path):
    run = Run(tmp_path)
    run.publish(2)
    run.state, info = run.step(run.state, None, batch(2))
    tree = deployed(run)
    changed = tree["params"]["a"] | {"w": tree["params"]["a"]["w"].at[3, 4].add(1)}
    tree["params"] = tree["params"] | {"a": changed}
    with pytest.raises(LogError, match="changed outside the step"):
        run.publisher.publish(info.update, tree)
    assert run.log.head() == 2


def test_jax_replica_writes_in_place_and_survives_a_held_view(tmp_path):
    run = Run(tmp_path)
    replica = Replica(run.log, JaxModel)
    run.publish(6)
    for _ in range(2):
        replica.advance()
    addresses = [x.unsafe_buffer_pointer() for x in replica._buffers._spare.model._leaves.arrays]
    replica.advance()
    after = replica._buffers.front.model._leaves.arrays
    assert [x.unsafe_buffer_pointer() for x in after] == addresses
    view = np.asarray(replica._buffers._spare.model._leaves.arrays[0])
    held = view.copy()
    replica.advance()
    assert np.array_equal(view, held)  # donation was given up, the view keeps its version
    replica.catch_up()
    assert replica.full_digest() == run.digest()


def test_a_template_gives_the_trees_own_structure(tmp_path):
    run = Run(tmp_path)
    run.publish(2)
    template = jax.eval_shape(lambda: deployed(run))
    replica = Replica(run.log, lambda snapshot: JaxModel(snapshot, template))
    replica.catch_up()
    with replica.lease() as lease:
        assert jax.tree.structure(lease.tree) == jax.tree.structure(template)
    template["params"]["a"]["b"] = jax.ShapeDtypeStruct((31,), np.float32)
    with pytest.raises(LogError, match="does not fit the template at params/a/b"):
        Replica(run.log, lambda snapshot: JaxModel(snapshot, template))


def test_running_and_full_digest_agree_in_numpy(tmp_path):
    run = Run(tmp_path)
    run.publish(3)
    replica = Replica(run.log)
    replica.catch_up()
    assert replica.full_digest() == digests.to_hex(replica.digest)


def test_a_jax_replica_compiles_before_the_first_update(tmp_path):
    run = Run(tmp_path)
    replica = Replica(run.log, JaxModel)
    compiled = jax_model._together._cache_size()
    before = replica.full_digest()
    run.publish(3)
    replica.catch_up()
    assert jax_model._together._cache_size() == compiled
    assert before != replica.full_digest() == run.digest()


@both
def test_levels_for_a_leaf_that_is_not_float32_are_refused(tmp_path, backend):
    import dataclasses

    from tests.wire.updates import make_update

    run = Run(tmp_path)
    replica = Replica(run.log, MODELS[backend])
    fingerprint = run.publisher.manifest.spec.fingerprint
    update = make_update([((3,), 10, 3, "int8")], base=0, fingerprint=fingerprint)
    update = dataclasses.replace(update, scales=(np.float32(0.5),))
    blob = encode_update(update, lineage=run.publisher.manifest.lineage)
    refused(replica, blob, "levels are for float32")
