"""Updates for tests, made with NumPy alone."""

import ml_dtypes
import numpy as np

from cdl_jax.core.layout import SparseUpdate


def make_update(sections, *, base=4, seed=0, fingerprint=b"f" * 16):
    """sections: (leaves, n, k, dtype) each; k random positions of n; "level" for scaled int8."""
    rng = np.random.default_rng(seed)
    indices, values = [], []
    for _, n, k, dtype in sections:
        indices.append(np.sort(rng.choice(n, k, replace=False)).astype(np.int32))
        kind = np.dtype(getattr(ml_dtypes, dtype, "int8" if dtype == "level" else dtype))
        if dtype == "bool":
            values.append(rng.integers(0, 2, k).astype(bool))
        elif dtype == "level":
            values.append(rng.integers(-127, 128, k).astype(np.int8))
        else:
            raw = rng.integers(0, 256, k * kind.itemsize).astype(np.uint8)
            values.append(raw.view(kind))
    return SparseUpdate(
        tuple(indices), tuple(values), np.array([len(i) for i in indices], np.int32),
        np.uint32(base), np.uint32(base + 1), np.arange(4, dtype=np.uint32),
        tuple(tuple(s[0]) for s in sections), fingerprint,
        tuple(np.float32(2.0 ** -rng.integers(126)) if s[3] == "level" else None for s in sections),
    )  # fmt: skip


MIXED = [
    ((0,), 1000, 10, "float32"),
    ((1,), 64, 1, "float32"),
    ((2,), 48, 48, "float32"),
    ((3,), 1, 1, "bool"),
    ((4,), 300, 20, "bfloat16"),
    ((7,), 300, 20, "bfloat16"),
    ((9, 11, 12), 5000, 100, "uint32"),
    ((20,), 40, 3, "float64"),
    ((21,), 500, 30, "level"),
    ((22,), 90, 80, "level"),
    ((30, 31), 500, 30, "level"),
    ((40,), 5000, 900, "float32"),
    ((41,), 120, 110, "float32"),
]


def assert_same(a, b):
    """Equality by bits."""
    assert a.sections == b.sections
    assert a.fingerprint == b.fingerprint
    assert (int(a.base), int(a.version)) == (int(b.base), int(b.version))
    assert np.array_equal(a.digest, b.digest)
    assert np.array_equal(a.counts, b.counts)
    assert a.section_scales() == b.section_scales()
    for x, y in zip([*a.indices, *a.values], [*b.indices, *b.values], strict=True):
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()
