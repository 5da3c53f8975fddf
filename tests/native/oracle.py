"""Inputs that are hard to select from, and the selection in NumPy."""

import importlib

import numpy as np


def _paths():
    try:
        kernels = importlib.import_module("cdl_jax.native._kernels")
    except ImportError:
        return []
    # The fastest comes last and stays in use.
    return [name for name in ("scalar", "avx2", "avx512") if kernels.use_path(name)]


PATHS = _paths()


def _normal(rng, n):
    return rng.standard_normal(n), rng.standard_normal(n)


def _subnormal(rng, n):
    tiny = rng.integers(-(2**24), 2**24, (2, n)) * 2.0**-149
    return tiny[0], np.where(rng.random(n) < 0.2, 0.0, tiny[1])


def _infinite(rng, n):
    return np.where(rng.random(n) < 0.1, -np.inf, rng.standard_normal(n)), rng.standard_normal(n)


def _not_numbers(rng, n):
    words = rng.standard_normal(n).astype(np.float32).view(np.uint32)
    payloads = rng.integers(1, 2**23, n, dtype=np.uint32) | np.uint32(0x7FC00000)
    payloads |= rng.integers(0, 2, n, dtype=np.uint32) << np.uint32(31)
    words = np.where(rng.random(n) < 0.02, payloads, words)
    return words.view(np.float32), np.zeros(n, np.float32)


def _cancelling(rng, n):
    update = rng.standard_normal(n)
    return update, np.where(rng.random(n) < 0.9, -update, update)


def _near_ties(rng, n):
    steps = rng.choice([0, 1, 2], n, p=[0.497, 0.5, 0.003])
    return 1.0 + steps * 2.0**-23, np.zeros(n)


def _one_row(rng, n):
    large = np.zeros(n)
    large[n // 3 : n // 3 + n // 100 + 1] = 100.0
    return large * rng.standard_normal(n), 1e-3 * rng.standard_normal(n)


INPUTS = {
    "normal": _normal,
    "ties": lambda rng, n: (rng.integers(-3, 4, n), rng.integers(-3, 4, n)),
    "equal": lambda rng, n: (np.full(n, 0.25), np.full(n, -0.5)),
    "zero": lambda rng, n: (np.zeros(n), np.zeros(n)),
    "signed zeros": lambda rng, n: (rng.choice([0.0, -0.0], n), rng.choice([0.0, -0.0], n)),
    "mostly zero": lambda rng, n: (np.where(rng.random(n) < 1e-3, 1.0, -0.0), np.full(n, -0.0)),
    "subnormal": _subnormal,
    "infinite": _infinite,
    "not numbers": _not_numbers,
    "cancelling": _cancelling,
    "near ties": _near_ties,
    "one huge": lambda rng, n: (1e30 * (np.arange(n) == n // 2), rng.standard_normal(n)),
    "one row": _one_row,
    "ascending": lambda rng, n: (np.arange(n), np.zeros(n)),
    "descending": lambda rng, n: (np.arange(n)[::-1], np.zeros(n)),
}


def make(kind, n, seed):
    update, residual = INPUTS[kind](np.random.default_rng(seed), n)
    return np.asarray(update, np.float32), np.asarray(residual, np.float32)


def bits(x):
    return np.asarray(x).view(np.uint32)


def flush(x):
    b = bits(x)
    return np.where(b & 0x7F800000, b, b & 0x80000000).astype(np.uint32).view(np.float32)


def oracle(update, residual, k):
    """Indices, sent and residual of one flat selection."""
    acc = flush(flush(update) + flush(residual))
    magnitude = np.minimum(bits(acc) & 0x7FFFFFFF, 0x7F800001).astype(np.int64)
    chosen = np.sort(np.lexsort((np.arange(acc.size), -magnitude))[:k])
    left = acc.copy()
    left[chosen] = 0.0
    return chosen, acc[chosen], left


def check(got, want):
    indices, sent, residual = got
    np.testing.assert_array_equal(np.asarray(indices), want[0])
    np.testing.assert_array_equal(bits(sent), bits(want[1]))
    np.testing.assert_array_equal(bits(residual), bits(want[2]))


def sampled_positions(n, k):
    """Where the kernel looks before it chooses a limit: 8 neighbours in each of many strata."""
    groups = min(n // 8, int(5 * max(n**0.5, np.cbrt(float(k) * n)))) // 8
    stride = n // groups
    x = np.arange(groups, dtype=np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    begin = np.arange(groups) * stride + x % np.uint32(stride - 7)
    return (begin[:, None] + np.arange(8)).ravel()
