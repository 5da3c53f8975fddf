"""What several tests of core share: bits, a NumPy replica, optax under strict promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cdl_jax
from cdl_jax.core import digest


def bits(leaf):
    """A leaf's bits, flat unsigned integers."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf).reshape(-1)
    return array.view(f"u{array.dtype.itemsize}")


def assert_same(left, right):
    """Same structure, shapes, dtypes, bits."""

    def check(a, b):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(bits(a), bits(b))

    jax.tree.map(check, left, right)


def changed(left, right):
    """How many entries differ as bits, leaf by leaf."""
    return jax.tree.map(lambda a, b: int((bits(a) != bits(b)).sum()), left, right)


class NumpyReplica:
    """A deployed tree as plain arrays, written by index: no code shared with the library."""

    def __init__(self, deployed):
        leaves = jax.tree_util.tree_leaves_with_path(deployed)
        named = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
        self.leaves = {name: np.array(named[name]) for name in sorted(named)}

    def apply(self, update):
        arrays = list(self.leaves.values())
        for section, indices, values, count in zip(
            update.sections, update.indices, update.values, np.asarray(update.counts), strict=True
        ):
            indices, words = np.asarray(indices), bits(values)
            start = 0
            for leaf in (arrays[i] for i in section):
                flat = leaf.reshape(-1).view(f"u{leaf.dtype.itemsize}")
                for i, word in zip(indices[:count].tolist(), words[:count].tolist(), strict=True):
                    if start <= i < start + leaf.size:
                        flat[i - start] = word
                start += leaf.size
            check_indices(indices, int(count), start)

    def digest(self):
        """The full digest of the arrays, 32 hex digits."""
        return hex_of(digest.numpy_digest(self.leaves))

    def assert_equals(self, deployed):
        other = NumpyReplica(deployed).leaves
        assert_same(self.leaves, other)


def hex_of(lanes):
    """A running digest as `tree_digest` writes it."""
    return "".join(f"{lane:08x}" for lane in np.asarray(lanes))


def check_indices(indices, count, total):
    """Ascending, distinct, padded with distinct positions past the end."""
    assert indices.dtype == np.int32
    assert (np.diff(indices.astype(np.int64)) > 0).all()
    assert (indices[:count] >= 0).all()
    assert (indices[:count] < total).all()
    assert (indices[count:] >= total).all()


def under(promotion, tx):
    """A transform traced under another dtype promotion: optax mixes dtypes, we must not."""

    def within(function):
        def call(*args, **kwargs):
            with jax.numpy_dtype_promotion(promotion):
                return function(*args, **kwargs)

        return call

    return optax.GradientTransformationExtraArgs(within(tx.init), within(tx.update))


def sparsifier(compressor):
    """The transform, strict also inside a lenient wrapper."""
    return under("strict", optax.with_extra_args_support(cdl_jax.error_feedback(compressor)))


def lenient(tx):
    """An optax transform, or a chain of them around a `sparsifier`."""
    return under("standard", tx)


def chained(*txs):
    """A chain whose parts that are not ours may mix dtypes."""
    return lenient(optax.chain(*txs))
