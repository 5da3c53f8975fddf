"""A replica with a public key takes nothing that its trainer did not sign."""

import json
import subprocess
import sys

import pytest

import cdl_jax
from cdl_jax import cli
from cdl_jax.deploy import Publisher, Replica
from cdl_jax.errors import LogError, RefusedUpdateError
from cdl_jax.wire import decode_update, encode_update
from cdl_jax.wire.keys import SigningKey, read_public_key, read_signing_key
from tests.deploy.small import Run

MINE, OTHER = SigningKey.generate(), SigningKey.generate()


def test_a_signed_log_is_followed_and_its_replays_are_refused_by_order(tmp_path):
    run = Run(tmp_path, key=MINE)
    replica = Replica(run.log, key=MINE.public)
    run.publish(12)
    assert replica.catch_up() == 12
    assert replica.full_digest() == run.digest()
    for old in (0, 5, 11):
        with pytest.raises(RefusedUpdateError, match="the next one is 13"):
            replica.apply(run.blobs[old])
    assert Replica(run.log, key=MINE.public).version == 10  # from a signed snapshot


def test_unsigned_and_foreign_signed_updates_are_refused(tmp_path):
    run = Run(tmp_path, key=MINE)
    replica = Replica(run.log, key=MINE.public)
    run.publish()
    update, lineage = decode_update(run.blobs[0]), run.publisher.manifest.lineage
    for key, word in ((None, "is not signed"), (OTHER, "not by the public key")):
        with pytest.raises(RefusedUpdateError, match=word):
            replica.apply(encode_update(update, lineage=lineage, key=key))
    assert replica.version == 0
    replica.apply(run.blobs[0])
    assert replica.version == 1


def test_an_unsigned_or_foreign_first_record_is_refused(tmp_path):
    for name, key in (("a", None), ("b", OTHER)):
        run = Run(tmp_path / name, key=key)
        with pytest.raises(RefusedUpdateError, match="first record .* not signed"):
            Replica(run.log, key=MINE.public)
    run = Run(tmp_path / "c", key=MINE)
    path = tmp_path / "c" / "log.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"lineage": "00" * 16}))
    with pytest.raises(RefusedUpdateError, match="first record .* not signed"):
        Replica(run.log, key=MINE.public)


def test_an_unsigned_snapshot_is_refused(tmp_path):
    signed, unsigned = Run(tmp_path / "a", key=MINE), Run(tmp_path / "b")
    name = f"snapshots/{0:012d}.safetensors"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(LogError, match="not signed"):
        Replica(signed.log, key=MINE.public)
    assert Replica(unsigned.log).version == 0


@pytest.mark.parametrize("key", [None, OTHER])
def test_a_log_goes_on_under_the_key_that_it_began_with(tmp_path, key):
    run = Run(tmp_path, key=MINE)
    tree = cdl_jax.deployed(run.state)
    manifest = run.publisher.manifest
    with pytest.raises(LogError, match="another signing key"):
        Publisher.begin(run.log, run.owner, tree, key=key)
    assert Publisher.begin(run.log, run.owner, tree, key=MINE).manifest == manifest


def test_the_commands_pair_refuses_another_pairs_log_in_one_sentence(tmp_path, capsys):
    key, other = str(tmp_path / "k"), str(tmp_path / "other")
    assert cli.main(["keygen", "--out", key]) == 0
    assert capsys.readouterr().out.split() == [key, f"{key}.pub"]
    assert cli.main(["keygen", "--out", key]) == 1
    assert cli.main(["keygen", "--out", other]) == 0
    run = Run(tmp_path / "log", key=read_signing_key(key))
    run.publish(2)
    follow = ["replica", "--log", str(tmp_path / "log"), "--until", "2", "--public-key"]
    assert cli.main([*follow, f"{key}.pub"]) == 0
    capsys.readouterr()
    assert cli.main([*follow, f"{other}.pub"]) == 1
    assert "not signed by the public key" in capsys.readouterr().err


def test_without_cryptography_signing_says_what_to_install():
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from cdl_jax.cli import main\n"
        "sys.exit(main(['keygen']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'cdl_jax[sign]'" in done.stderr


def test_a_rollback_of_a_signed_log_is_signed_too(tmp_path, capsys):
    key = str(tmp_path / "k")
    cli.main(["keygen", "--out", key])
    run = Run(tmp_path / "log", key=read_signing_key(key))
    run.publish(4)
    run.owner.release()
    replica = Replica(run.log, key=read_public_key(f"{key}.pub"))
    words = ["rollback", "--log", str(tmp_path / "log"), "--to", "2"]
    assert cli.main(words) == 1
    assert "another signing key, or none" in capsys.readouterr().err
    assert cli.main([*words, "--sign-key", key]) == 0
    assert replica.catch_up() == 5
