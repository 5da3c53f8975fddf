"""Writes the golden files that are missing: `python -m tests.wire.make_golden`.

A golden file must decode for ever: none is ever written anew, a new form gets a new one.
"""

import json
import pathlib

import ml_dtypes
import numpy as np

from cdl_jax.core import digest
from cdl_jax.core.layout import LeafSpec, SparseUpdate, TreeSpec
from cdl_jax.wire import Snapshot, encode_snapshot, encode_update
from cdl_jax.wire.codec import DTYPES
from tests.wire.updates import make_update

FOLDER = pathlib.Path(__file__).parent / "golden"
SNAPSHOT = FOLDER / "snapshot.safetensors"
LINEAGE = bytes(range(16, 32))
PRIVATE = bytes(range(32))  # of the golden signature


def updates():
    rng = np.random.default_rng(2)
    yield "empty", make_update([])
    yield "one", make_update([((0,), 10, 1, "float32")])
    yield "dtypes", make_update([((2 * i,), 50, 3, name) for i, name in enumerate(DTYPES)])
    yield "uniform", make_update([((1,), 9000, 90, "uint32"), ((2,), 900, 9, "uint32")])
    clustered = np.cumsum(rng.geometric(np.repeat([0.9, 0.01, 0.3], 80)))
    yield "clustered", one(clustered, rng.integers(0, 256, clustered.size).astype(np.uint8))
    yield "run", make_update([((3,), 100, 100, "uint8"), ((4,), 40, 40, "uint8")])
    yield "dense", make_update([((0,), 120, 110, "int16"), ((9,), 60, 50, "int16")])
    yield "shared", make_update([((1, 4, 5), 5000, 70, "float32")])
    weights = (0.05 * rng.standard_normal(150)).astype(np.float32)
    weights[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45]
    places = np.sort(rng.choice(9000, 150, replace=False))
    yield "float32", one(places, weights)
    yield "float32_of_bfloat16", one(places, weights.astype(ml_dtypes.bfloat16).astype(np.float32))
    yield "float32_of_float16", one(places, weights.astype(np.float16).astype(np.float32))
    yield "bfloat16", one(places, weights.astype(ml_dtypes.bfloat16))
    yield "float16", one(places, weights.astype(np.float16))
    for bits in (2, 4, 8):
        top = min(127, 1 << (bits - 1))
        levels = rng.integers(1, top + 1, 150) * rng.choice([-1, 1], 150)
        yield f"int{bits}", one(places, levels.astype(np.int8), 2.0 ** (-9 - bits))
    levels = rng.integers(-2, 3, 150).astype(np.int8)
    yield "levels_with_zero", one(places, levels, 2.0**-126, leaves=(0, 7))
    yield from later(np.random.default_rng(3))


def later(rng):
    """Forms that the files above, whose draws must stay theirs, do not hold."""
    there = np.sort(rng.choice(60, 50, replace=False))
    words = rng.integers(0, 2**32, 50).astype(np.uint32)
    yield "shared_dense", one(there, words, leaves=(1, 2, 5))
    levels = (rng.integers(1, 8, 50) * rng.choice([-1, 1], 50)).astype(np.int8)
    yield "levels_dense", one(there, levels, 2.0**-12)
    yield "levels_shared_dense", one(there, levels, 2.0**-12, leaves=(1, 2, 5))
    # Nine blocks, the last one sparser: all but one step of their parameters are 0.
    gaps = np.r_[rng.integers(0, 2, 512), rng.integers(10, 20, 40)]
    bits = rng.integers(0, 2, gaps.size).astype(bool)
    yield "parameters_in_rice", one(np.cumsum(gaps + 1) - 1, bits)


def one(positions, values, scale=None, leaves=(3,)):
    return SparseUpdate(
        (np.asarray(positions, np.int32),), (values,), np.array([len(positions)], np.int32),
        np.uint32(70_000), np.uint32(70_001), np.array([1, 2**32 - 1, 3, 4], np.uint32),
        (leaves,), b"0123456789abcdef", (None if scale is None else np.float32(scale),),
    )  # fmt: skip


def described(update, signature=""):
    """What the JSON beside a golden file holds."""
    columns = (update.sections, update.indices, update.values, update.section_scales())
    return {
        "fingerprint": update.fingerprint.hex(),
        "lineage": LINEAGE.hex(),
        "base": int(update.base),
        "version": int(update.version),
        "digest": [int(x) for x in update.digest],
        "sections": [
            {
                "leaves": list(leaves),
                "dtype": values.dtype.name,
                "scale": None if scale is None else float(scale),
                "positions": positions.tolist(),
                "values": numbers(values, scale),
            }
            for leaves, positions, values, scale in zip(*columns, strict=True)
        ],
        "signature": signature,
    }


def numbers(values, scale):
    """Levels as they are, other values as bits."""
    return (values if scale is not None else values.view(f"u{values.dtype.itemsize}")).tolist()


def snapshot():
    """The content of the golden snapshot."""
    tensors = {
        "model_state/n": np.array(7, np.int32),
        "params/b": np.arange(5).astype(ml_dtypes.bfloat16),
        "params/w": np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5,
        "params/z": np.zeros((0, 3), np.uint8),
    }
    spec = TreeSpec(tuple(LeafSpec(n, x.shape, x.dtype.name) for n, x in tensors.items()))
    return Snapshot(spec, tensors, 70_001, LINEAGE, digest.numpy_digest(tensors))


def signing_key():
    """Whose signatures the golden files have."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from cdl_jax.wire.keys import SigningKey

    return SigningKey(Ed25519PrivateKey.from_private_bytes(PRIVATE))


def main():
    key = signing_key()
    FOLDER.mkdir(exist_ok=True)
    signed = ("signed", make_update([((0,), 100, 5, "float32")]), key)
    cases = [*((name, update, None) for name, update in updates()), signed]
    for name, update, signer in cases:
        path = FOLDER / f"{name}.update"
        if not path.exists():
            blob = encode_update(update, lineage=LINEAGE, key=signer)
            path.write_bytes(blob)
            signature = blob[-80:-16].hex() if signer else ""
            path.with_suffix(".json").write_text(json.dumps(described(update, signature)) + "\n")
    if not SNAPSHOT.exists():
        SNAPSHOT.write_bytes(encode_snapshot(snapshot(), key=key))


if __name__ == "__main__":
    main()
