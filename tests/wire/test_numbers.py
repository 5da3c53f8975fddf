import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.wire import WireError, numbers

ANY = st.lists(
    st.one_of(st.integers(0, 3), st.integers(0, 300), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=200,
)


def by_hand(values):
    """The stream written number by number, as the module's docstring says it."""
    return min([fixed(values), rice(values), blocks(values)], key=len)


def fixed(values):
    width = max(1, max(values).bit_length())
    return bytes([32 + width]) + pad("".join(low(v, width) for v in values))


def rice(values):
    b = best(values)
    return bytes([b]) + streams(values, [b] * len(values))


def blocks(values):
    if len(values) <= 64:
        return bytes(1 << 20)
    parameters = [best(values[i : i + 64]) for i in range(0, len(values), 64)]
    steps = [b - a for a, b in zip([0, *parameters], parameters, strict=False)]
    zigzag = [2 * s if s >= 0 else -2 * s - 1 for s in steps]
    side = min([fixed(zigzag), rice(zigzag)], key=len)
    return b"\x20" + side + streams(values, np.repeat(parameters, 64)[: len(values)])


def best(values):
    return min(range(32), key=lambda b: (len(values) * (b + 1) + sum(v >> b for v in values), b))


def streams(values, parameters):
    pairs = list(zip(values, map(int, parameters), strict=True))
    unary = pad("".join("0" * (v >> b) + "1" for v, b in pairs))
    return numbers.varint(len(unary)) + pad("".join(low(v, b) for v, b in pairs)) + unary


def low(value, bits):
    """The low bits, the lowest first."""
    return format(value & ((1 << bits) - 1), f"0{bits}b")[::-1] if bits else ""


def pad(bits):
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


@given(ANY)
@settings(deadline=None)
def test_streams_are_those_written_number_by_number_and_come_back(values):
    array = np.array(values, np.uint32)
    expected = by_hand(values)
    for encode in (numbers.encode, numbers.numpy_encode):
        assert encode(array) == expected
    for decode in (numbers.decode, numbers.numpy_decode):
        back, end = decode(b"ab" + expected + b"c", 2, len(values))
        assert (back.tolist(), back.dtype, end) == (values, np.uint32, 2 + len(expected))


@pytest.mark.parametrize("spread", [1, 5, 40, 3000])
def test_long_streams_are_the_same_natively_and_in_numpy(spread):
    rng = np.random.default_rng(spread)
    clustered = rng.geometric(1 / np.repeat(rng.uniform(1, spread, 40), 70)) - 1
    array = clustered[: 64 * 41 + 17].astype(np.uint32)
    blob = numbers.encode(array)
    assert blob == numbers.numpy_encode(array)
    assert (blob[0] == numbers.BLOCKS) == (spread > 1)
    assert np.array_equal(numbers.decode(blob, 0, array.size)[0], array)
    assert np.array_equal(numbers.numpy_decode(blob, 0, array.size)[0], array)


@given(st.lists(st.lists(st.integers(0, 9000), min_size=1, unique=True), min_size=1, max_size=9))
@settings(deadline=None)
def test_gaps_come_back_and_are_the_same_natively_and_in_numpy(sections):
    counts = np.array([len(s) for s in sections])
    positions = np.array([p for s in sections for p in sorted(s)], np.int32)
    blob = numbers.encode_gaps(positions, counts)
    assert blob == numbers.numpy_encode_gaps(positions, counts)
    for decode in (numbers.decode_gaps, numbers.numpy_decode_gaps):
        back, end = decode(blob, 0, counts)
        assert (back.tolist(), back.dtype, end) == (positions.tolist(), np.int32, len(blob))


BROKEN = [
    (b"\x00\x01\x01", 2), (b"\x00\x01\x03", 1), (b"\x00\x02\x01\x00", 1), (b"\x00\x00", 1),
    (b"\x03\x01\xff\x01", 1), (b"\x21\xff", 7), (b"\x41\x00", 1), (b"\x20\x20\x00", 65),
    (b"\x05", 1), (b"", 1), (b"\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 1),
    (b"\x1f\x02\x00\x00\x00\x00\x00\x02", 1), (b"\x21\x01", 9), (b"\x21\x01", 2**60),
    (b"\x00\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x01", 1), (b"\x40\xff\xff\xff", 1),
]  # fmt: skip


@pytest.mark.parametrize(("blob", "count"), BROKEN)
def test_what_holds_no_such_numbers_is_refused(blob, count):
    for decode in (numbers.decode, numbers.numpy_decode):
        with pytest.raises(WireError):
            decode(blob, 0, count)


@pytest.mark.parametrize("decode", [numbers.decode_gaps, numbers.numpy_decode_gaps])
def test_positions_past_31_bits_are_refused(decode):
    blob = numbers.encode(np.array([2**31 - 2, 0, 0], np.uint32))
    assert decode(blob, 0, np.array([2, 1]))[0].tolist() == [2**31 - 2, 2**31 - 1, 0]
    with pytest.raises(WireError, match="past 2\\^31 - 1"):
        decode(blob, 0, np.array([3]))


def test_the_native_form_is_the_one_that_runs_here():
    assert numbers._codec is importlib.import_module("cdl_jax.native._codec")


@pytest.mark.parametrize("density", [1e-2, 1e-3, 1e-4])
def test_uniform_positions_cost_at_most_a_hundredth_more_than_their_entropy(density):
    n, k = 25_000_000, int(25_000_000 * density)
    rng = np.random.default_rng(0)
    positions = np.sort(rng.choice(n, k, replace=False)).astype(np.int32)
    p = k / n
    floor = (
        n * -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) - np.log2(2 * np.pi * n * p * (1 - p)) / 2
    )
    assert 8 * len(numbers.encode_gaps(positions, np.array([k]))) < 1.01 * floor
