import dataclasses
import json
import os
import stat

import numpy as np
import pytest
import safetensors.numpy

from cdl_jax.core import digest
from cdl_jax.errors import ConfigError
from cdl_jax.wire import WireError, decode_snapshot, decode_update, encode_snapshot, encode_update
from cdl_jax.wire.keys import SigningKey, read_public_key, read_signing_key, write_pair
from tests.wire.test_format import resealed
from tests.wire.test_snapshot import make
from tests.wire.updates import MIXED, make_update

MINE, OTHER = SigningKey.generate(), SigningKey.generate()


def test_an_update_must_be_signed_by_the_key_that_is_asked_for():
    update = make_update(MIXED)
    signed, unsigned = encode_update(update, key=MINE), encode_update(update)
    assert len(signed) == len(unsigned) + 64
    assert encode_update(decode_update(signed, key=MINE.public), key=MINE) == signed
    decode_update(signed)  # a reader without a key takes both
    with pytest.raises(WireError, match="is not signed"):
        decode_update(unsigned, key=MINE.public)
    with pytest.raises(WireError, match="not by the public key"):
        decode_update(signed, key=OTHER.public)


def test_no_bit_of_a_signed_update_can_change_under_a_good_checksum():
    blob = encode_update(make_update(MIXED[:3]), key=MINE)
    for bit in range(0, 8 * (len(blob) - 16), 3):
        mutant = bytearray(blob)
        mutant[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decode_update(resealed(bytes(mutant)), key=MINE.public)


def test_a_signature_does_not_pass_from_one_kind_to_another():
    blob = encode_update(make_update(MIXED), key=MINE)
    assert not MINE.public.verifies(blob[-80:-16], blob[:-80])


def test_a_snapshot_must_be_signed_by_the_key_that_is_asked_for():
    signed, unsigned = encode_snapshot(make(), key=MINE), encode_snapshot(make())
    assert decode_snapshot(signed, key=MINE.public).version == 7
    decode_snapshot(signed)
    for blob, key in ((unsigned, MINE), (signed, OTHER)):
        with pytest.raises(WireError, match="version 7 is not signed"):
            decode_snapshot(blob, key=key.public)


def test_tensors_changed_so_that_the_digest_holds_break_a_snapshots_signature(monkeypatch):
    true = make()
    monkeypatch.setattr(digest, "numpy_digest", lambda tensors: true.digest)
    tensors = true.tensors | {"params/a": np.ones((2, 3), np.float32)}
    forged = dataclasses.replace(true, tensors=tensors)
    signed = metadata_of(encode_snapshot(true, key=MINE))
    with_signature = safetensors.numpy.save(forged.tensors, signed)
    assert decode_snapshot(with_signature).version == 7
    with pytest.raises(WireError, match="not signed"):
        decode_snapshot(with_signature, key=MINE.public)


def metadata_of(blob):
    size = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + size])["__metadata__"]


def test_a_pair_of_files_comes_back_and_is_never_overwritten(tmp_path):
    path = str(tmp_path / "k")
    assert write_pair(path) == (path, f"{path}.pub")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert read_signing_key(path).public.hex() == read_public_key(f"{path}.pub").hex()
    with pytest.raises(ConfigError, match="exists already"):
        write_pair(path)
    with pytest.raises(ConfigError, match="cannot write"):
        write_pair(str(tmp_path / "none" / "k"))


@pytest.mark.parametrize("read", [read_signing_key, read_public_key])
def test_what_is_no_key_is_one_sentence(tmp_path, read):
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import x25519

    with pytest.raises(ConfigError, match="cannot read the key"):
        read(str(tmp_path / "none"))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="holds no"):
        read(str(tmp_path / "text"))
    other = x25519.X25519PrivateKey.generate()
    pem = other.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    if read is read_public_key:
        spki = form.PublicFormat.SubjectPublicKeyInfo
        pem = other.public_key().public_bytes(form.Encoding.PEM, spki)
    (tmp_path / "other").write_bytes(pem)
    with pytest.raises(ConfigError, match="not Ed25519"):
        read(str(tmp_path / "other"))
