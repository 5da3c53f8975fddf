"""The streams of floating-point values, natively and in NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.wire import WireError, numbers, values

KINDS = [values._FLOATS[name] for name in ("float32", "bfloat16", "float16")]
NATIVE = numbers._codec


def both(monkeypatch, deed):
    """What a call gives natively, and in NumPy alone, or that it is refused."""
    out = []
    for codec in (NATIVE, None):
        monkeypatch.setattr(numbers, "_codec", codec)
        try:
            out.append(deed())
        except WireError:
            out.append("refused")
    monkeypatch.setattr(numbers, "_codec", NATIVE)
    return out


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_streams_are_the_same_and_come_back(kind, data):
    most = (1 << (1 + kind.mantissa + kind.exponent)) - 1
    drawn = data.draw(st.lists(st.integers(0, most), min_size=1, max_size=200))
    bits = np.array(drawn, np.uint32) & np.uint32(most ^ data.draw(st.integers(0, 255)))
    blob = values._encode_split(bits, kind)
    assert blob == values.numpy_encode_split(bits, kind)
    back, end = values.numpy_decode_split(blob, 1, bits.size, kind)
    native, native_end = NATIVE.decode_floats(blob, 1, bits.size, *kind)
    assert (back.tolist(), end) == (bits.tolist(), len(blob))
    assert (np.frombuffer(native, np.uint32).tolist(), native_end) == (back.tolist(), end)


def test_damage_is_refused_by_both_or_read_alike_by_both(monkeypatch):
    rng = np.random.default_rng(0)
    array = rng.standard_normal(150).astype(np.float32)
    blob = values.encode(array, levels=False)
    assert blob[0] == values.SPLIT
    refused = 0
    for place in range(1, len(blob)):
        damaged = bytearray(blob)
        damaged[place] ^= 1 << int(rng.integers(8))
        torn = bytes(damaged)[: len(blob) - int(rng.integers(3))]

        def deed(torn=torn):
            found, end = values.decode(torn, 0, array.size, array.dtype, levels=False)
            return found.tobytes(), end

        native, plain = both(monkeypatch, deed)
        assert native == plain
        refused += native == "refused"
    assert 100 < refused < len(blob)
