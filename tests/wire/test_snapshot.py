import ml_dtypes
import numpy as np
import pytest

from cdl_jax.core import digest
from cdl_jax.core.layout import LeafSpec, TreeSpec
from cdl_jax.wire import Snapshot, WireError, decode_snapshot, encode_snapshot

TENSORS = {
    "params/a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "params/b": np.array(-0.0, np.float32),
    "params/c": np.arange(5).astype(ml_dtypes.bfloat16),
    "params/d": np.zeros((0, 3), np.int32),
    "params/e": np.array([True, False]),
}


def make():
    spec = TreeSpec(tuple(LeafSpec(n, x.shape, x.dtype.name) for n, x in TENSORS.items()))
    return Snapshot(spec, TENSORS, 7, bytes(range(16)), digest.numpy_digest(TENSORS))


def test_a_snapshot_comes_back():
    back = decode_snapshot(encode_snapshot(make()))
    assert (back.version, back.lineage, back.spec) == (7, bytes(range(16)), make().spec)
    for name, x in TENSORS.items():
        assert back.tensors[name].dtype == x.dtype
        assert back.tensors[name].shape == x.shape
        assert back.tensors[name].tobytes() == x.tobytes()


def test_any_reader_of_safetensors_opens_it(tmp_path):
    from safetensors import safe_open

    (tmp_path / "x.safetensors").write_bytes(encode_snapshot(make()))
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata()["version"] == "7"
        assert np.array_equal(file.get_tensor("params/a"), TENSORS["params/a"])


def test_damage_anywhere_is_refused():
    blob = encode_snapshot(make())
    header = int.from_bytes(blob[:8], "little")
    metadata_end = blob.index(b'"params/a":')  # the tensors' table follows the metadata
    for i in [*range(metadata_end), *range(8 + header, len(blob))]:
        mutant = bytearray(blob)
        mutant[i] ^= 1
        with pytest.raises(WireError):
            decode_snapshot(bytes(mutant))
    for size in range(0, len(blob), 7):
        with pytest.raises(WireError):
            decode_snapshot(blob[:size])
