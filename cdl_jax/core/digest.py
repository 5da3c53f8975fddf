"""The digest: four uint32 lanes, each a sum over all entries of a 32-bit mix. Needs no JAX.

A tensor is read as little-endian uint32 words: entries of 1, 2 or 4 bytes give one word each
(zero-extended bits), entries of 8 bytes two (low, high). For word `w` at word position `p` and
lane seed `s`, all modulo 2^32:

    h = (p xor s) * 0x9E3779B1;  h ^= h >> 15;  h ^= w
    h *= 0x85EBCA6B;             h ^= h >> 13
    h *= 0xC2B2AE35;             h ^= h >> 16

The lane is the sum of `h`. It is additive, so a change of k entries costs O(k), and it does not
depend on the order of evaluation. The seeds of a tensor are the first four little-endian words
of SHA-256(path, a zero byte, dtype name). `xp` is `numpy` or `jax.numpy`: one text serves both.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

LANES = 4
BLOCK = 1 << 15  # words at a time in NumPy: the temporaries stay in the cache


def seeds(name: str, dtype: str) -> np.ndarray:
    """Lane seeds of one tensor, uint32[4]."""
    return np.frombuffer(hashlib.sha256(f"{name}\0{dtype}".encode()).digest()[:16], "<u4")


def mix(xp: Any, positions: Any, words: Any, seed: Any) -> Any:
    """uint32 mixes of uint32 words at uint32 positions; shapes broadcast."""
    h = (positions ^ seed) * xp.uint32(0x9E3779B1)
    h = (h ^ (h >> xp.uint32(15))) ^ words
    h = h * xp.uint32(0x85EBCA6B)
    h = (h ^ (h >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
    return h ^ (h >> xp.uint32(16))


def words_of(values: np.ndarray) -> np.ndarray:
    """A NumPy array's digest words, uint32[n], or uint32[2 n] for 8-byte entries."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.itemsize >= 4:
        return flat.view("<u4")
    return flat.view(f"u{flat.dtype.itemsize}").astype(np.uint32)


def numpy_digest(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Full digest of tensors by canonical path, uint32[4]. Reads every entry."""
    lanes = np.zeros(LANES, np.uint32)
    for name, values in tensors.items():
        words, seed = words_of(values), seeds(name, values.dtype.name)
        for start in range(0, words.size, BLOCK):
            block = words[start : start + BLOCK]
            positions = np.arange(start, start + block.size, dtype=np.uint32)
            for lane in range(LANES):
                lanes[lane : lane + 1] += _sum(mix(np, positions, block, seed[lane]))
    return lanes


def numpy_change(
    old: np.ndarray, new: np.ndarray, positions: np.ndarray, seed: np.ndarray
) -> np.ndarray:
    """What a change of k words adds to the digest, uint32[4]; seed: uint32[4, k] or [4, 1]."""
    lanes = np.zeros(LANES, np.uint32)
    for lane in range(LANES):
        lanes[lane] = _lane_sum(positions, new, old, seed[lane])
    return lanes


def to_hex(lanes: Any) -> str:
    """32 hex digits, lane 0 first.

    Examples:
      >>> to_hex(np.array([1, 2, 3, 255], np.uint32))
      '000000010000000200000003000000ff'
    """
    return "".join(f"{int(lane):08x}" for lane in np.asarray(lanes))


def from_hex(text: str) -> np.ndarray:
    """Inverse of `to_hex`, uint32[4]."""
    if len(text) != 8 * LANES:
        raise ValueError(f"a digest has {8 * LANES} hex digits, got {text!r}")
    return np.array([int(text[i : i + 8], 16) for i in range(0, 8 * LANES, 8)], np.uint32)


def _lane_sum(positions: np.ndarray, new: np.ndarray, old: np.ndarray, seed: Any) -> np.uint32:
    """sum(mix(new) - mix(old)) of one lane, in place: the temporaries stay in the cache."""
    start = positions ^ seed
    start *= np.uint32(0x9E3779B1)
    start ^= start >> np.uint32(15)
    h, shifted, sums = np.empty_like(start), np.empty_like(start), []
    for words in (new, old):
        np.bitwise_xor(start, words, out=h)
        h *= np.uint32(0x85EBCA6B)
        h ^= np.right_shift(h, np.uint32(13), out=shifted)
        h *= np.uint32(0xC2B2AE35)
        h ^= np.right_shift(h, np.uint32(16), out=shifted)
        sums.append(_sum(h))
    return (sums[0] - sums[1])[0]


def _sum(words: np.ndarray) -> np.ndarray:
    return words.sum(dtype=np.uint32, keepdims=True)
