"""What `experiments.fuzz` decodes: mutants of the golden files, bombs and heavy bodies."""

import pathlib
import struct
from collections.abc import Iterator

import numpy as np
import xxhash

from cdl_jax.wire import numbers
from cdl_jax.wire.codec import MAX_LEAVES, Piece, encode_body
from cdl_jax.wire.numbers import varint

GOLDEN = pathlib.Path("tests/wire/golden")
HEADER, CHECKSUM, SIGNATURE = 72, 16, 64
EXTREMES = [0, 1, 127, 128, 2**14, 2**17, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1]
DEEDS = ("bit_flip", "byte", "cut", "splice", "extreme_number", "extreme_length")


def corpus() -> list[bytes]:
    """The golden files."""
    return [path.read_bytes() for path in sorted(GOLDEN.glob("*.update"))]


def mutate(rng: np.random.Generator, seeds: list[bytes]) -> tuple[bytes, set[str]]:
    """One of the seeds with one to three things done to it, and which; never a seed itself."""
    while True:
        mutant, done = _mutate(rng, seeds)
        if mutant not in seeds:
            return mutant, done


def _mutate(rng: np.random.Generator, seeds: list[bytes]) -> tuple[bytes, set[str]]:
    blob = bytearray(seeds[rng.integers(len(seeds))])
    done = set()
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(HEADER if rng.random() < 0.8 else 0, len(blob)))
        deed = DEEDS[rng.integers(len(DEEDS))]
        done.add(deed)
        damage(blob, deed, place, rng, seeds)
        if len(blob) < HEADER + 1:
            break
    return bytes(blob), done


def damage(
    blob: bytearray, deed: str, place: int, rng: np.random.Generator, seeds: list[bytes]
) -> None:
    """Does one thing to the bytes."""
    if deed == "bit_flip":
        blob[place] ^= 1 << rng.integers(8)
    elif deed == "byte":
        blob[place] = rng.integers(256)
    elif deed == "cut":
        stop = place + int(rng.integers(1, 40))
        del blob[place : stop if rng.random() < 0.7 else len(blob)]
    elif deed == "splice":
        other = seeds[rng.integers(len(seeds))]
        start = int(rng.integers(len(other)))
        blob[place : place + int(rng.integers(40))] = other[start : start + rng.integers(80)]
    elif deed == "extreme_number":
        blob[place : place + int(rng.integers(1, 4))] = varint(int(rng.choice(EXTREMES)))
    else:
        blob[68:72] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFFFFFF)


def resealed(blob: bytes) -> bytes:
    """The same with a good checksum; whatever its header says stands."""
    return sealed(blob[:-CHECKSUM])


def mended(blob: bytes) -> bytes:
    """The same with a header that begins well, a length that holds, and a good checksum."""
    head, body = blob[:HEADER].ljust(HEADER, b"\0"), blob[HEADER:-CHECKSUM]
    base = struct.unpack_from("<I", head, 44)[0] % (2**32 - 1)
    start = _start() + head[12:44] + struct.pack("<II", base, base + 1) + head[52:68]
    return sealed(start + struct.pack("<I", len(body)) + body)


def unsigned(blob: bytes) -> bytes:
    """An update without its signature, if it has one."""
    if not blob[10]:
        return blob
    return sealed(blob[:10] + b"\0\0" + blob[12 : -SIGNATURE - CHECKSUM])


def sealed(content: bytes) -> bytes:
    """Header and body with their checksum."""
    return content + xxhash.xxh3_128_digest(content)


def of_body(body: bytes) -> bytes:
    """An update with this body."""
    tail = bytes(32) + struct.pack("<II", 0, 1) + bytes(16)
    return sealed(_start() + tail + struct.pack("<I", len(body)) + body)


def _start() -> bytes:
    """Magic, format version and no flags."""
    return b"\x89CDLJX\r\n" + struct.pack("<HH", 2, 0)


def bombs() -> Iterator[bytes]:
    """Bodies that announce as much as they can, in every form, most of them not canonical."""
    filler = bytes([255]) * 40_000
    for kind in (0, 4, 32, 64, 96, 128 + 4, 128 + 64 + 4, 12, 3):
        for count in (8 * len(filler) - 200, 4 * len(filler), len(filler), 2**31 - 1, 2**40):
            number = np.array([min(count, 2**32) - 1], np.uint32)
            for head in (b"\0", b"\2", b"", b"\0\0", b"\x21", b"\2\x21", b"\1\0\x21\0", b"\x40"):
                leaves = bytes([1, 0, 2 if kind & 32 else 1])
                scale = b"\x7f" if kind & 128 else b""
                counts = numbers.encode(number)
                yield of_body(bytes([kind]) + leaves + counts + scale + head + filler)
    yield of_body(b"\x20\1\0" + varint(131_071) + filler)
    yield of_body(b"\0\1\0" + varint(131_071) + b"\x21" + bytes(16_384) + filler)


def heavy() -> Iterator[bytes]:
    """Canonical bodies that say the most a byte: few bits an entry, or a section."""
    k = 1_300_000
    run = np.arange(2 * k, dtype=np.int32)
    gap = run[:k].copy()
    gap[-1] = 2**31 - 2  # the fixed form of its gaps, to compare sizes with, is 31 bits wide
    yield of_body(encode_body([Piece((0,), run, np.ones(2 * k, np.int8), 100)]))
    yield of_body(encode_body([Piece((0,), gap, np.ones(k, np.int8), 100)]))
    for dtype in (np.float32, np.float16):
        yield of_body(encode_body([Piece((0,), gap, np.ones(k, dtype))]))
        first = np.zeros(1, np.int32)
        one = [Piece((i,), first, np.ones(1, dtype)) for i in range(MAX_LEAVES - 1)]
        yield of_body(encode_body(one))
