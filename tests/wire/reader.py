"""A reader of updates that imports NumPy alone, written from cdl_jax/wire/FORMAT.md.

`read(blob)` gives the header's fields and, per section, its leaves, positions, values as bits
(levels where there is a scale), dtype and scale. It takes intact bytes from a source it trusts:
it checks neither the checksum (xxh3-128) nor the signature (Ed25519).
"""

import struct

import numpy as np

DTYPES = [
    "float32", "bfloat16", "float16", "float64", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "bool", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz",
    "float8_e4m3fnuz", "float8_e5m2fnuz",
]  # fmt: skip
WIDTHS = [4, 2, 2, 8, 1, 2, 4, 8, 1, 2, 4, 8] + 6 * [1]
FLOATS = {"float32": (23, 8), "bfloat16": (7, 8), "float16": (10, 5)}
SHARED, DENSE, SCALED = 32, 64, 128


def read(blob):
    magic, form, flags, fingerprint, lineage, base, version, digest, size = struct.unpack_from(
        "<8sHH16s16sII16sI", blob
    )
    assert (magic, form, len(blob)) == (b"\x89CDLJX\r\n", 2, 72 + size + 64 * flags + 16)
    body = Bytes(blob[72 : 72 + size])
    sections, leaf = [], -1
    while body.at < size:
        sections += group(body, leaf)
        leaf = sections[-1]["leaves"][-1]
    return {
        "fingerprint": fingerprint.hex(), "lineage": lineage.hex(), "base": base,
        "version": version, "digest": list(struct.unpack("<4I", digest)), "sections": sections,
        "signature": blob[72 + size : -16].hex(),
    }  # fmt: skip


def group(body, leaf):
    kind = body.byte()
    leaves = []
    for _ in range(body.varint()):
        first = leaf + 1 + body.varint()
        leaves += range(first, first + body.varint())
        leaf = leaves[-1]
    owners = [leaves] if kind & SHARED else [[x] for x in leaves]
    counts = numbers(body, len(owners)) + 1
    scales = [2.0 ** (body.byte() - 127) if kind & SCALED else None for _ in owners]
    positions = dense(body, counts) if kind & DENSE else sparse(body, counts)
    total = int(counts.sum())
    values = levels(body, total) if kind & SCALED else bits(body, total, kind % SHARED)
    stops = np.cumsum(counts)
    return [
        {
            "leaves": list(owner), "dtype": DTYPES[kind % SHARED], "scale": scale,
            "positions": positions[stop - k : stop], "values": values[stop - k : stop],
        }
        for owner, k, stop, scale in zip(owners, counts, stops, scales, strict=True)
    ]  # fmt: skip


def sparse(body, counts):
    gaps = np.split(numbers(body, int(counts.sum())), np.cumsum(counts)[:-1])
    return np.concatenate([np.cumsum(g + 1) - 1 for g in gaps])


def dense(body, counts):
    absent = numbers(body, counts.size)
    spans = counts + absent
    there = np.ones(spans.sum(), bool)
    if absent.any():
        there[np.cumsum(numbers(body, int(absent.sum())) + 1) - 1] = False
    return np.concatenate([np.flatnonzero(t) for t in np.split(there, np.cumsum(spans)[:-1])])


def bits(body, count, code):
    if body.byte() == 0:
        raw = body.take(count * WIDTHS[code])
        return np.frombuffer(raw, f"<u{WIDTHS[code]}").astype(np.uint64)
    mantissa, exponent = FLOATS[DTYPES[code]]
    spare = body.byte()
    largest = np.cumsum(unzigzag(numbers(body, -(-count // 64))))
    field = np.repeat(largest, 64)[:count] - numbers(body, count)
    signed = numbers(body, count)
    kept = mantissa - spare
    sign, low = signed >> kept, (signed & ((1 << kept) - 1)) << spare
    return (sign << (mantissa + exponent) | field << mantissa | low).astype(np.uint64)


def levels(body, count):
    form = body.byte()
    coded = numbers(body, count)
    size = (coded >> 1) + 1 if form == 2 else (coded + 1) >> 1
    return np.where(coded & 1, -size, size)


def unzigzag(coded):
    return np.where(coded & 1, -(coded >> 1) - 1, coded >> 1)


def numbers(body, count):
    """A stream of integers, int64[count]."""
    form, blocks = body.byte(), -(-count // 64)
    if form > 32:
        return low_bits(body, np.full(count, form - 32))
    if form == 32:
        parameters = np.repeat(np.cumsum(unzigzag(numbers(body, blocks))), 64)[:count]
    else:
        parameters = np.full(count, form)
    size = body.varint()
    low = low_bits(body, parameters)
    unary = np.unpackbits(np.frombuffer(body.take(size), np.uint8), bitorder="little")
    return np.diff(np.flatnonzero(unary), prepend=-1) - 1 << parameters | low


def low_bits(body, widths):
    """Of each number so many bits, int64; the lowest bit of a number and of a byte first."""
    total = int(widths.sum())
    stream = np.unpackbits(np.frombuffer(body.take(-(-total // 8)), np.uint8), bitorder="little")
    owner = np.repeat(np.arange(widths.size), widths)
    place = np.arange(total) - np.repeat(np.cumsum(widths) - widths, widths)
    out = np.zeros(widths.size, np.int64)
    np.add.at(out, owner, stream[:total].astype(np.int64) << place)
    return out


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def byte(self):
        return self.take(1)[0]

    def varint(self):
        number, shift = 0, 0
        while True:
            byte = self.byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
