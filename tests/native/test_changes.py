"""A NumPy replica's native writes and digests against NumPy's own."""

import numpy as np
import pytest

from cdl_jax.core import digest as digests
from cdl_jax.deploy import arena
from cdl_jax.wire import numbers

WIDTHS = pytest.mark.parametrize("width", [1, 2, 4, 8])


def made(width, seed):
    """An array of several leaves, and changes of some of them; the largest fills several blocks."""
    rng = np.random.default_rng(seed)
    sizes, counts = [1, 40, 7000, 64, 300], np.array([1, 13, 2500, 300], np.int32)
    starts = np.cumsum([0, *sizes[:-1]])[[0, 1, 2, 4]]
    positions = np.concatenate(
        [
            np.sort(rng.choice(sizes[i], k, replace=False))
            for i, k in zip([0, 1, 2, 4], counts, strict=True)
        ]
    ).astype(np.int32)
    bits = rng.integers(0, 256, positions.size * width, np.uint8).view(f"u{width}")
    seeds = rng.integers(0, 2**32, (4, digests.LANES), np.uint32)
    array = rng.integers(0, 256, sum(sizes) * width, np.uint8).view(f"u{width}")
    return array, arena.Changes(width, starts, counts, seeds, positions, bits)


@WIDTHS
def test_the_digest_and_the_written_entries_are_numpys(width, monkeypatch):
    array, changes = made(width, width)
    places = np.repeat(changes.starts, changes.counts) + changes.positions
    expected = array.copy()
    expected[places] = changes.bits
    native = arena.change(array, changes)
    np.testing.assert_array_equal(native, arena.numpy_change(array, changes))
    arena.write(array, changes)
    np.testing.assert_array_equal(array, expected)
    assert not arena.change(array, changes).any()  # what is there already changes nothing
    monkeypatch.setattr(numbers, "_codec", None)
    again, _ = made(width, width)
    np.testing.assert_array_equal(arena.change(again, changes), native)
    arena.write(again, changes)
    np.testing.assert_array_equal(again, expected)


def test_what_does_not_fit_the_array_is_never_written():
    array, changes = made(4, 0)
    before = array.copy()
    far = changes.positions.copy()
    far[-1] = array.size
    for wrong in (
        changes._replace(positions=far),
        changes._replace(positions=changes.positions[:-1]),
        changes._replace(bits=changes.bits[:-1]),
        changes._replace(starts=changes.starts - 1),
        changes._replace(counts=changes.counts + 1),
        changes._replace(width=3),
    ):
        for deed in (arena.change, arena.write):
            with pytest.raises(ValueError, match="do not fit"):
                deed(array, wrong)
    with pytest.raises(ValueError, match="4 seeds"):
        arena.change(array, changes._replace(seeds=changes.seeds[1:]))
    array.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        arena.write(array, changes)
    np.testing.assert_array_equal(array, before)
