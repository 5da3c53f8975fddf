"""The native selection under JAX's transformations: no copies, one launch, same results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.core.joined import join
from cdl_jax.native.select import error_feedback_top_k

pytest.importorskip("cdl_jax.native._kernels")

N, K = 2**20, 1000
SMALL = 10 * 4 * K  # bytes; far below the 4 * N of a parameter-sized copy


@functools.partial(jax.jit, donate_argnums=1)
def step(update, residual):
    return error_feedback_top_k([update], [residual], (K,), global_scope=False)


@functools.partial(jax.jit, donate_argnums=1)
def scanned(update, residual):
    def body(carry, scale):
        del scale
        indices, sent, (carry,) = step(update, carry)
        return carry, (indices[0], sent[0])

    return jax.lax.scan(body, residual, jnp.arange(3.0))


@functools.partial(jax.jit, donate_argnums=1)
def conditional(update, residual, use):
    def skip(update, residual):
        del update
        return join([jnp.zeros(K, jnp.int32)]), join([jnp.zeros(K)]), join([residual])

    return jax.lax.cond(use, step, skip, update, residual)


def normal(seed):
    return jax.random.normal(jax.random.key(seed), (N,))


def equal(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("compiled", "extra"), [(step, ()), (scanned, ()), (conditional, (jnp.bool(True),))]
)
def test_no_parameter_sized_copy(compiled, extra):
    program = compiled.lower(normal(0), normal(1), *extra).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < SMALL
    assert memory.alias_size_in_bytes >= 4 * N
    assert f"f32[{N}]{{0}} copy(" not in program.as_text()


def test_a_donated_residual_is_updated_in_place():
    residual = normal(1)
    address = residual.unsafe_buffer_pointer()
    kept = step(normal(0), residual)[2][0]
    assert residual.is_deleted()
    assert kept.unsafe_buffer_pointer() == address


def test_an_eager_call_leaves_its_arguments_alone():
    update, residual = normal(0), normal(1)
    before = [np.array(update), np.array(residual)]
    error_feedback_top_k([update], [residual], (K,), global_scope=False)
    equal([update, residual], before)


def test_scan_equals_single_steps():
    update, residual = normal(0), normal(1)
    kept, (indices, sent) = scanned(update, jnp.array(residual))
    for t in range(3):
        one_indices, one_sent, (residual,) = step(update, residual)
        equal((indices[t], sent[t]), (one_indices[0], one_sent[0]))
    equal(kept, residual)


def test_cond_takes_either_branch():
    want = step(normal(0), normal(1))
    equal(conditional(normal(0), normal(1), jnp.bool(True)), want)
    equal(conditional(normal(0), normal(1), jnp.bool(False))[2], [normal(1)])


def test_vmap_equals_single_calls():
    updates = jax.random.normal(jax.random.key(0), (3, 5000))

    def one(update):
        return error_feedback_top_k([update], [jnp.ones(5000)], (7,), global_scope=False)

    batched = jax.vmap(one)(updates)
    for i in range(3):
        equal(jax.tree.map(lambda x, i=i: x[i], batched), one(updates[i]))


@pytest.mark.parametrize("global_scope", [False, True])
def test_one_call_for_all_tensors(global_scope):
    tree = [jnp.ones(n) for n in range(1, 50)]
    ks = (3,) if global_scope else (1,) * len(tree)

    @jax.jit
    def run(tree):
        return error_feedback_top_k(tree, tree, ks, global_scope=global_scope)

    text = run.lower(tree).compile().as_text()
    assert text.count('custom_call_target="cdl_jax_error_feedback_top_k"') == 1


def test_the_calling_thread_keeps_its_subnormals():
    found = error_feedback_top_k([jnp.ones(100)], [jnp.ones(100)], (1,), global_scope=False)
    jax.block_until_ready(found)
    tiny = np.array([2.0**-149], np.float32)
    assert (tiny + tiny > 0).all()
