import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.wire import WireError, bitstream


def by_hand(values, b):
    """The code written bit by bit, as the docstring says it."""
    unary = "".join("0" * (v >> b) + "1" for v in values)
    low = "".join(format(v & ((1 << b) - 1), f"0{b}b") if b else "" for v in values)
    return pad(low), pad(unary)


def pad(bits):
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(0, 9))
@settings(deadline=None)
def test_streams_are_those_written_bit_by_bit_and_come_back(values, b):
    array = np.array(values, np.int64)
    low, unary = bitstream.encode(array, b)
    assert (low, unary) == by_hand(values, b)
    assert len(low) == bitstream.low_bytes(len(values), b)
    assert bitstream.decode(low, unary, len(values), b).tolist() == values


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
@settings(deadline=None)
def test_best_parameter_is_no_worse_than_its_neighbours(values):
    array = np.array(values, np.int64)
    b = bitstream.best_parameter(array)

    def cost(p):
        return len(values) * (p + 1) + sum(v >> p for v in values)

    assert cost(b) <= min(cost(max(0, b - 1)), cost(min(31, b + 1)))


@pytest.mark.parametrize(
    ("unary", "count"), [(b"\x80", 2), (b"\xc0", 1), (b"\x80\x00", 1), (b"", 1), (b"\x00", 0)]
)
def test_quotients_that_hold_another_count_are_refused(unary, count):
    with pytest.raises(WireError, match="quotients hold"):
        bitstream.decode(b"", unary, count, 0)


def test_ones_in_the_padding_are_refused():
    with pytest.raises(WireError, match="padded with ones"):
        bitstream.decode(b"\xff", b"\x80", 1, 3)
