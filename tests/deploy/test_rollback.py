import numpy as np
import pytest

from cdl_jax import cli
from cdl_jax.deploy import Replica
from cdl_jax.deploy.rollback import RollbackConfig, rollback
from cdl_jax.errors import LogError, OwnershipError
from tests.deploy.small import MODELS, Run


@pytest.mark.parametrize("to", [0, 3, 7])
def test_replicas_go_back_in_order_bit_for_bit(tmp_path, to):
    run = Run(tmp_path)
    wanted = [run.digest()]
    replicas = [Replica(run.log, model) for model in MODELS.values()]
    for _ in range(7):
        run.publish()
        wanted.append(run.digest())
    replicas[0].catch_up()
    run.owner.release()
    said = rollback(RollbackConfig(log=str(tmp_path), to=to))
    assert said.startswith(f"version 8 has the content of version {to}:")
    for replica in [*replicas, Replica(run.log)]:
        replica.catch_up()
        assert (replica.version, replica.full_digest()) == (8, wanted[to])
    assert run.log.snapshots()[-1] == 8
    if to == 7:
        assert ": 0 entries changed" in said


def test_a_live_trainer_keeps_a_rollback_out_and_the_old_run_does_not_go_on(tmp_path):
    run = Run(tmp_path)
    run.publish(4)
    with pytest.raises(OwnershipError, match="live writer"):
        rollback(RollbackConfig(log=str(tmp_path), to=2))
    run.owner.release()
    rollback(RollbackConfig(log=str(tmp_path), to=2))
    again = Run(tmp_path)
    words = "version 5 in .* holds another update already.* another machine, number of threads"
    with pytest.raises(LogError, match=words + ".* give a new --log and a new --run"):
        again.publish(6)
    assert run.log.head() == 5


def test_minus_zero_and_nan_come_back_by_their_bits(tmp_path):
    from cdl_jax.deploy import Publisher, open_log
    from tests.wire.updates import make_update

    log = open_log(str(tmp_path), create=True)
    first = {"params": {"w": np.array([-0.0, np.nan, 1, 2], np.float32)}}
    with log.claim() as owner:
        publisher = Publisher.begin(log, owner, first)
        model = Replica(log)
        update = make_update(
            [((0,), 4, 3, "float32")], base=0, fingerprint=publisher.manifest.spec.fingerprint
        )
        spare = model._buffers.ready().model
        update.digest[:] = spare.write([spare.plan(update)], model.digest)
        publisher.publish(update)
    rollback(RollbackConfig(log=str(tmp_path), to=0))
    replica = Replica(log)
    with replica.lease() as lease:
        assert lease.version == 2
        assert lease.tree["params"]["w"].tobytes() == first["params"]["w"].tobytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--to", "1"], "rollback needs --log"), (["--log", "x", "--to", "-1"], "to is -1"),
     (["--log", "/nowhere", "--to", "1"], "there is no log at /nowhere")],
)  # fmt: skip
def test_bad_settings_are_one_sentence(capsys, words, sentence):
    assert cli.main(["rollback", *words]) == 1
    assert sentence in capsys.readouterr().err


def test_the_command_says_what_it_did(tmp_path, capsys):
    run = Run(tmp_path)
    run.publish(2)
    run.owner.release()
    assert cli.main(["rollback", "--log", str(tmp_path), "--to", "9"]) == 1
    assert "does not hold version 9: it has 0 to 2" in capsys.readouterr().err
    assert cli.main(["rollback", "--log", str(tmp_path), "--to", "1"]) == 0
    assert "version 3 has the content of version 1" in capsys.readouterr().out
