"""Ed25519 keys in PEM files, for the trainer to sign with and replicas to check with."""

import os
import pathlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cdl_jax.errors import ConfigError


class PublicKey:
    """Checks signatures."""

    def __init__(self, key: Ed25519PublicKey):
        self._key = key

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is this key's for the message."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def hex(self) -> str:
        """The key itself, 64 hex digits."""
        return self._key.public_bytes_raw().hex()

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo, PEM."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class SigningKey:
    """Signs; keep it where the trainer alone can read."""

    def __init__(self, key: Ed25519PrivateKey):
        self._key = key

    @classmethod
    def generate(cls) -> "SigningKey":
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public(self) -> PublicKey:
        """What replicas check with."""
        return PublicKey(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same for the same message."""
        return self._key.sign(message)

    def to_pem(self) -> bytes:
        """PKCS8 without a password, PEM."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def write_pair(path: str) -> tuple[str, str]:
    """Makes a key pair: `path`, readable by its owner alone, and `path`.pub.

    Raises:
      ConfigError: when one of them exists, or cannot be written.
    """
    key = SigningKey.generate()
    try:
        _write_new(path, key.to_pem(), 0o600)
        _write_new(f"{path}.pub", key.public.to_pem(), 0o644)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename} exists already; give another --out") from error
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
    return path, f"{path}.pub"


def read_signing_key(path: str) -> SigningKey:
    """The signing key in a PEM file; raises ConfigError."""
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no signing key; make one with cdl-jax keygen") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds a key that is not Ed25519's; cdl-jax keygen makes one")
    return SigningKey(key)


def read_public_key(path: str) -> PublicKey:
    """The public key in a PEM file; raises ConfigError."""
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no public key; give the .pub of the trainer's") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} holds a key that is not Ed25519's; cdl-jax keygen makes one")
    return PublicKey(key)


def _write_new(path: str, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _read(path: str) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from error
