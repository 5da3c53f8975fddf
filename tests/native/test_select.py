"""The native selection against an independent NumPy oracle, bit for bit."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cdl_jax.core import ragged
from cdl_jax.core import select as core
from cdl_jax.core.select import xla_top_k
from cdl_jax.native import available
from cdl_jax.native.select import error_feedback_top_k, most_changed
from tests.native.oracle import INPUTS, PATHS, bits, check, make, oracle, sampled_positions

_kernels = pytest.importorskip("cdl_jax.native._kernels")
EDGES = [0, 1, 2, 8, 9, 16, 17, 33, 511, 512, 513, 2047, 2048, 2049, 4097, 10_000, 2**17]
SPLIT = 2**19 + 3  # large enough to be shared between threads


def select(updates, residuals, ks, *, global_scope=False):
    return error_feedback_top_k(
        [jnp.asarray(u) for u in updates],
        [jnp.asarray(r) for r in residuals],
        tuple(ks),
        global_scope=global_scope,
    )


@st.composite
def trees(draw, most=4):
    """A list of (update, residual, k)."""
    sizes = st.sampled_from(EDGES) | st.integers(0, 3000)
    tensors = []
    for _ in range(draw(st.integers(1, most))):
        n = draw(sizes)
        k = draw(st.integers(0, n) | st.sampled_from([0.0001, 0.001, 0.01, 0.1]))
        k = min(n, max(1, int(k * n))) if isinstance(k, float) else k
        kind = draw(st.sampled_from(sorted(INPUTS)))
        tensors.append((*make(kind, n, draw(st.integers(0, 2**32 - 1))), k))
    return tensors


def test_built_means_available():
    assert available()


@settings(max_examples=150, deadline=None)
@given(tree=trees(), path=st.sampled_from(PATHS))
def test_each_tensor_equals_the_oracle(tree, path):
    assert _kernels.use_path(path)
    updates, residuals, ks = zip(*tree, strict=True)
    got = select(updates, residuals, ks)
    for t, tensor in enumerate(tree):
        check([part[t] for part in got], oracle(*tensor))


@settings(max_examples=75, deadline=None)
@given(tree=trees(), path=st.sampled_from(PATHS), data=st.data())
def test_global_scope_selects_over_the_concatenation(tree, path, data):
    assert _kernels.use_path(path)
    updates, residuals, _ = zip(*tree, strict=True)
    flat = [np.concatenate(side) for side in (updates, residuals)]
    k = data.draw(st.integers(0, flat[0].size) | st.integers(0, min(flat[0].size, 200)))
    indices, sent, kept = select(updates, residuals, [k], global_scope=True)
    check((indices[0], sent[0], np.concatenate(kept)), oracle(*flat, k))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_a_tensor_shared_between_threads_equals_the_oracle(kind, path):
    assert _kernels.use_path(path)
    update, residual = make(kind, SPLIT, 0)
    for k in (0, 1, 500, SPLIT // 100, SPLIT // 20, SPLIT // 2, SPLIT - 1, SPLIT):
        got = select([update], [residual], [k])
        check([part[0] for part in got], oracle(update, residual, k))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [2**17, SPLIT])
def test_a_sample_that_misleads_changes_nothing(n, path):
    # One large entry too few, all of them sampled: the limit is too high for k candidates.
    assert _kernels.use_path(path)
    k = 400
    update, residual = make("normal", n, 5)
    update[sampled_positions(n, k)[: k - 1]] += 100.0
    check([part[0] for part in select([update], [residual], [k])], oracle(update, residual, k))


@pytest.mark.parametrize("large", [50, ragged.LARGE])
def test_many_tensors_of_many_sizes(large, monkeypatch):
    monkeypatch.setattr(ragged, "LARGE", large)
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(6, 2, 483), 1, 300_000).astype(int).tolist()
    kinds = rng.choice(sorted(INPUTS), len(sizes))
    tensors = [(*make(kind, n, 7), max(1, n // 100)) for kind, n in zip(kinds, sizes, strict=True)]
    updates, residuals, ks = zip(*tensors, strict=True)
    got = select(updates, residuals, ks)
    for t, tensor in enumerate(tensors):
        check([part[t] for part in got], oracle(*tensor))


def test_positions_and_residuals_are_flat():
    update = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    indices, _, residuals = select([update], [np.zeros(24, np.float32)], [2])
    assert indices[0].tolist() == [22, 23]
    assert residuals[0].tolist() == [*range(22), 0, 0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [100, 5000, SPLIT])
def test_nan_counts_as_the_largest_magnitude(n, path):
    assert _kernels.use_path(path)
    update = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    update[[3, n // 2, n - 1]] = np.nan
    indices, _, residuals = select([update], [np.zeros(n, np.float32)], [3])
    assert indices[0].tolist() == [3, n // 2, n - 1]
    assert np.isfinite(residuals[0]).all()


THREADS = """
import hashlib
from tests.native.oracle import INPUTS, make
from tests.native.test_select import SPLIT, select
digest = hashlib.sha256()
for kind in INPUTS:
    update, residual = make(kind, 4 * SPLIT, 3)
    for part in select([update], [residual], [SPLIT // 50]):
        digest.update(part[0].tobytes())
print(digest.hexdigest())
"""


def test_the_result_does_not_depend_on_the_number_of_threads():
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, sys.path)])

    def digest(threads):
        env = os.environ | {"NPROC": str(threads), "PYTHONPATH": path}
        command = [sys.executable, "-c", THREADS]
        return subprocess.check_output(command, env=env, text=True, timeout=300)

    assert digest(1) == digest(5)


def test_equals_the_xla_form():
    kinds = ("normal", "ties", "subnormal", "infinite", "not numbers")
    tree = [(*make(kind, 5000, 2), 50) for kind in kinds]
    updates, residuals, ks = ([jnp.asarray(x) for x in part] for part in zip(*tree, strict=True))
    for scope, k in ((False, tuple(map(int, ks))), (True, (321,))):
        args = {"global_scope": scope}
        want = xla_top_k(updates, residuals, k, **args)
        for a, b in zip(
            jax.tree.leaves(error_feedback_top_k(updates, residuals, k, **args)),
            jax.tree.leaves(want),
            strict=True,
        ):
            np.testing.assert_array_equal(bits(a), bits(b))


@pytest.mark.parametrize(
    ("shapes", "dtype", "ks", "message"),
    [
        (((4,), (5,)), jnp.float32, (1,), r"update \(4,\), residual \(5,\)"),
        (((4,), (4,)), jnp.bfloat16, (1,), "bfloat16"),
        (((4,), (4,)), jnp.float32, (5,), r"k = 5 is outside 0\.\.4"),
        (((4,), (4,)), jnp.float32, (-1,), "k = -1"),
        (((4,), (4,)), jnp.float32, (1, 1), "2 values in ks for 1"),
    ],
)
def test_wrong_arguments_are_named(shapes, dtype, ks, message):
    with pytest.raises(ValueError, match=message):
        error_feedback_top_k(
            [jnp.zeros(shapes[0], dtype)],
            [jnp.zeros(shapes[1], dtype)],
            ks,
            global_scope=False,
        )


def test_positions_beyond_int32_are_refused():
    def trace(x):
        return error_feedback_top_k([x], [x], (1,), global_scope=False)

    with pytest.raises(ValueError, match="int32"):
        jax.eval_shape(trace, jax.ShapeDtypeStruct((2**31 - 1,), jnp.float32))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 0], "a row is"),
        ([0, 2, 1], "ends before it begins"),
        ([0, -1, 3], "begins before its array"),
        ([0, 0, 4], "ends past its array"),
    ],
)
@pytest.mark.parametrize("which", ["rows", "olds"])
def test_rows_that_do_not_fit_their_array_are_refused(rows, message, which):
    call = jax.ffi.ffi_call("cdl_jax_most_changed", [jax.ShapeDtypeStruct((3,), jnp.int32)])
    tables = {"rows": [0, 0, 3], "olds": [0, 0, 3], which: rows}
    tables = {name: np.array(row, np.int64) for name, row in tables.items()}
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call(jnp.ones(3), jnp.zeros(3), **tables))


@pytest.mark.parametrize("olds", [[0, 0, 2], [0, 0, 3, 0, 0, 3]])
def test_old_rows_of_other_tensors_are_refused(olds):
    call = jax.ffi.ffi_call("cdl_jax_most_changed", [jax.ShapeDtypeStruct((3,), jnp.int32)])
    tables = {"rows": np.array([0, 0, 3]), "olds": np.array(olds)}
    with pytest.raises(jax.errors.JaxRuntimeError, match="old tensor"):
        jax.block_until_ready(call(jnp.ones(3), jnp.zeros(3), **tables))


@settings(max_examples=60, deadline=None)
@given(tree=trees(), path=st.sampled_from(PATHS))
def test_the_most_changed_are_the_largest_differences(tree, path):
    """Of the oracle, whose sum with the negated old values is the difference."""
    assert _kernels.use_path(path)
    rows = [row for row in tree if row[2]]
    assume(rows)
    news, olds, ks = zip(*rows, strict=True)
    got = most_changed([jnp.asarray(x) for x in olds], [jnp.asarray(x) for x in news], tuple(ks))
    for new, old, k, found in zip(news, olds, ks, got, strict=True):
        same = bits(old) == bits(new)
        parts = np.where(same, np.float32(0), new), np.where(same, np.float32(0), -old)
        np.testing.assert_array_equal(found, oracle(*parts, k)[0])


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_the_most_changed_are_the_same_without_the_kernels(kind, monkeypatch):
    tensors = [make(kind, n, n) for n in (1, 7, 600, 5000)]
    news, olds = ([jnp.asarray(x) for x in column] for column in zip(*tensors, strict=True))
    olds[2] = olds[2].at[::3].set(news[2][::3])
    ks = (1, 2, 6, 50)
    fast = core.most_changed(olds, news, ks)
    monkeypatch.setattr(core, "available", lambda: False)
    for a, b in zip(fast, core.most_changed(olds, news, ks), strict=True):
        np.testing.assert_array_equal(a, b)
