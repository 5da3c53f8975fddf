import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.core import compress
from tests.core.helpers import bits, check_indices


@pytest.mark.parametrize(("density", "n", "k"), [
    (1e-3, 0, 0), (1e-3, 1, 1), (1e-3, 999, 1), (1e-3, 2000, 2), (0.29, 100, 29), (0.01, 100, 1),
    (1.0, 7, 7), (0.5, 7, 3), (1e-9, 10**9, 1), (1e-3, 61_706, 61),
])  # fmt: skip
def test_entries_sent(density, n, k):
    assert compress.entries_sent(density, n) == k


@pytest.mark.parametrize("make", [compress.top_k, compress.random_k])
@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan"), "0.1", None, [0.1], True])
def test_other_densities_are_refused_with_the_value(make, density):
    with pytest.raises(ValueError, match=re.escape(f"density is {density!r}; give")):
        make(density)


@pytest.mark.parametrize("make", [compress.top_k, compress.random_k])
def test_other_scopes_and_traced_densities_are_refused(make):
    with pytest.raises(ValueError, match="scope is 'layer'"):
        make(0.1, scope="layer")
    with pytest.raises(TypeError, match="density must be a Python number"):
        make(jnp.asarray(0.1))
    with pytest.raises(TypeError, match="static_args"):
        jax.jit(lambda d: make(d).density)(0.1)


@pytest.mark.parametrize("bits_", [0, 17, -1, 2.5, "4", True])
def test_other_widths_are_refused(bits_):
    with pytest.raises(ValueError, match=f"bits is {bits_!r}; give"):
        compress.quantize(bits_)


def quantized(acc, width):
    indices, sent, kept = _quantized(acc, np.zeros_like(acc), width)
    return np.asarray(indices[0]), np.asarray(sent[0]), np.asarray(kept[0])


@functools.partial(jax.jit, static_argnums=2)
def _quantized(update, residual, width):
    return compress.quantize(width).compress(
        [update], [residual], (update.size,),
        global_scope=False, key=jax.random.key(0),
    )  # fmt: skip


def dense(indices, sent):
    out = np.zeros(indices.size, sent.dtype)
    count = int((indices < indices.size).sum())
    out[indices[:count]] = sent[:count]
    return out


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_quantized_levels_indices_and_residual(width):
    acc = np.random.default_rng(width).normal(size=3000).astype(np.float32)
    acc[:3] = [0, -0.0, 3.0]
    indices, sent, kept = quantized(acc, width)
    count = int((sent != 0).sum())
    check_indices(indices, count, acc.size)
    assert (bits(sent)[count:] == 0).all()
    scale = 2.0 ** np.ceil(np.log2(np.abs(acc).max()))
    level = dense(indices, sent) / (scale / 2 ** (width - 1))
    np.testing.assert_array_equal(level, np.round(level))
    assert np.abs(level).max() <= 2 ** (width - 1)
    assert (np.abs(acc - dense(indices, sent)) <= scale / 2 ** (width - 1)).all()
    np.testing.assert_array_equal(kept, acc - dense(indices, sent))


@pytest.mark.parametrize("width", [1, 2, 8, 16])
def test_what_lies_on_a_level_is_sent_exactly(width):
    levels = 2 ** (width - 1)
    acc = np.random.default_rng(0).integers(-levels, levels + 1, 100_000) / levels
    acc = acc.astype(np.float32)
    acc[0] = 1
    indices, sent, kept = quantized(acc, width)
    np.testing.assert_array_equal(dense(indices, sent), acc)
    assert not kept.any()


@pytest.mark.parametrize("width", [1, 3, 16])
def test_quantize_is_unbiased(width):
    acc = np.array([1.0, 0.3, -0.6, 1e-3, -1e-5, 0.77777], np.float32)

    def send(key):
        indices, sent, _ = compress.quantize(width).compress(
            [acc], [jnp.zeros_like(acc)], (6,), global_scope=False, key=key
        )
        return jnp.zeros(6).at[indices[0]].set(sent[0], mode="drop")

    draws = 20_000
    keys = jax.random.split(jax.random.key(2), draws)
    mean = np.asarray(jax.jit(jax.vmap(send))(keys), np.float64).mean(axis=0)
    step = 1 / 2 ** (width - 1)
    # The variance of one rounding is p (1 - p) step^2, at most a quarter.
    assert (np.abs(mean - acc) < 5 * step * 0.5 / np.sqrt(draws)).all()


@pytest.mark.parametrize("acc", [np.zeros(5, np.float32), np.full(5, 1e-37, np.float32)])
def test_nothing_and_next_to_nothing_send_no_subnormal(acc):
    indices, sent, kept = quantized(acc, 16)
    sent_dense = dense(indices, sent)
    assert ((sent_dense == 0) | (np.abs(sent_dense) >= np.finfo(np.float32).tiny)).all()
    np.testing.assert_array_equal(sent_dense + kept, acc)
