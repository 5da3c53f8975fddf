import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import cdl_jax
from cdl_jax.core import rounding
from cdl_jax.core.levels import numpy_resolve
from cdl_jax.core.rounding import BITS, round_entries

INCREMENTS = np.array([0.01, -0.013, 0.1, -0.004, 0.0, 0.02, 1e-30], np.float32)
OLD = np.array([1.0, -0.5, 3e-5, -7e-7, 1e5, -0.0, 2.0**-14], np.float32)


def rounded(values, old=OLD, increments=INCREMENTS):
    return jax.jit(lambda o, i: round_entries(o, i, values))(old, increments)


@pytest.mark.parametrize(("values", "kind"), [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_new_values_are_those_of_a_cast(values, kind):
    rng = np.random.default_rng(0)
    old = np.r_[OLD, 10.0 ** rng.uniform(-9, 4, 2000)].astype(np.float32)
    increments = np.r_[INCREMENTS, 0.3 * old[OLD.size :]].astype(np.float32)
    limits = (-65504, 65504) if values == "f16" else (-np.inf, np.inf)
    expected = np.clip(old + increments, *limits).astype(kind).astype(np.float32)
    out = rounded(values, old, increments)
    assert np.asarray(out.values).tobytes() == expected.tobytes()
    assert np.array_equal(out.moved, expected - old)
    assert out.scale is None


@pytest.mark.parametrize("values", list(BITS))
def test_levels_are_those_of_the_docstring(values):
    top = 2 ** (BITS[values] - 1)
    size = np.abs(INCREMENTS).astype(np.float64)
    reach = min(size.max(), 2 ** (BITS[values] / 2) * size.mean())
    scale = 2.0 ** np.round(np.log2(reach / top))
    level = np.where(size > 0, np.clip(np.round(size / scale), 1, min(top, 127)), 0)
    out = rounded(values)
    assert float(out.scale) == scale
    assert np.array_equal(out.values, np.sign(INCREMENTS) * level)
    assert out.values.dtype == jnp.int8
    assert np.array_equal(out.moved, np.asarray(out.values) * np.float32(scale))


@pytest.mark.parametrize("values", list(BITS))
@pytest.mark.parametrize("size", [0.0, 1e-45, 3e38, np.inf])
def test_a_scale_is_a_power_of_two_whatever_comes(values, size):
    out = rounded(values, OLD[:3], np.full(3, size, np.float32))
    mantissa, exponent = np.frexp(float(out.scale))
    assert mantissa == 0.5
    assert -126 <= exponent - 1 <= 127
    assert np.abs(np.asarray(out.values, int)).max() <= 127


def test_levels_resolve_to_the_same_bits_in_numpy_and_jax():
    rng = np.random.default_rng(0)
    old = rng.integers(0, 2**32, 5000, np.uint32)
    special = np.array([0, 1, 0x80000000, 0x80000001, 0x7FFFFF, 0x7F7FFFFF, 0x7F800000], np.uint32)
    old[: special.size] = special
    old[special.size : 200] = rng.integers(1 << 23, 1 << 24, 200 - special.size)  # of 2^-126
    old = old[~np.isnan(old.view(np.float32))]
    levels = rng.integers(-127, 128, old.size).astype(np.int8)
    levels[:4] = 0
    for exponent in (-126, -120, -20, 0, 120):
        scale = np.float32(2.0**exponent)
        ours = numpy_resolve(old, levels, scale)
        theirs = jax.jit(rounding.resolve_levels)(old, levels, scale)
        assert np.array_equal(ours, theirs)
        tiny = (ours & 0x7F800000) == 0
        assert not ours[tiny].any()  # no subnormals, no -0.0
    by_hand = np.float32(1.5) + np.float32(-3 * 0.25)
    one = numpy_resolve(np.array([1.5], np.float32).view(np.uint32), np.int8([-3]), 0.25)
    assert one.view(np.float32)[0] == by_hand


@pytest.mark.parametrize(
    ("values", "scope", "compressor"),
    [("bf16", "tensor", cdl_jax.top_k), ("f16", "global", cdl_jax.random_k),
     ("int8", "global", cdl_jax.top_k), ("int2", "tensor", cdl_jax.random_k)],
)  # fmt: skip
def test_what_is_not_sent_stays_in_the_residual(values, scope, compressor):
    rng = np.random.default_rng(1)
    params = {n: rng.standard_normal((8, 9)).astype(np.float32) for n in "ab"}
    tx = cdl_jax.error_feedback(compressor(0.1, scope=scope, values=values))
    state = tx.init(params)
    for _ in range(3):
        updates = {n: 0.01 * rng.standard_normal((8, 9)).astype(np.float32) for n in "ab"}
        before = state.residual
        sent, state = jax.jit(tx.update)(updates, state, params)
        for name in "ab":
            acc = updates[name] + np.asarray(before[name])
            assert np.array_equal(acc - np.asarray(sent[name]), state.residual[name])
    k = sum(x.size for x in state.indices)
    assert 0 < sum(int(np.sum(np.asarray(x) != 0)) for x in sent.values()) <= k
    assert any(np.asarray(r)[np.asarray(s) != 0].any() for r, s in zip(
        state.residual.values(), sent.values(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize("values", ["bf16", "int4"])
def test_leaves_of_other_dtypes_are_sent_as_they_are(values):
    params = {"a": jnp.ones(40), "b": jnp.ones(40, jnp.bfloat16)}
    tx = cdl_jax.sparsify_top_k(0.1, values=values)
    grads = jax.tree.map(lambda x: jnp.arange(40).astype(x.dtype) / 7, params)
    _, state = tx.update(grads, tx.init(params), params)
    assert state.values[1].dtype == jnp.bfloat16
    assert state.scales[1] is None
    with pytest.raises(ValueError, match="leaves of several dtypes"):
        cdl_jax.sparsify_top_k(0.1, scope="global", values=values).init(params)


def test_an_unknown_form_is_named():
    for make in (cdl_jax.top_k, cdl_jax.random_k, cdl_jax.sparsify_top_k):
        with pytest.raises(ValueError, match="values is 'int3'; give one of float32, bf16"):
            make(0.1, values="int3")


def test_training_goes_on_where_few_bits_are_sent():
    def loss_fn(params, model_state, batch, key):
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), (model_state, {})

    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 50)).astype(np.float32)
    batch = {"x": x, "y": x @ rng.standard_normal(50).astype(np.float32)}
    losses = {}
    for values in ("bf16", "int4", "int2"):
        tx = optax.chain(optax.sgd(0.05), cdl_jax.sparsify_top_k(0.2, values=values))
        state = cdl_jax.init_state({"w": jnp.zeros(50)}, tx)
        step = cdl_jax.make_step(loss_fn, tx)
        for _ in range(150):
            state, info = step(state, None, batch)
        losses[values] = float(info.loss)
    assert max(losses.values()) < 0.05, losses


@pytest.mark.parametrize(("values", "kind"), [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_statistics_are_sent_in_the_same_form(values, kind):
    """And with them in one group, the parameters take no more bytes than they must."""

    def loss_fn(params, model_state, batch, key):
        mean = 0.9 * model_state["mean"] + 0.1 * batch.mean(0)
        return jnp.sum((batch @ params["w"]) ** 2), ({"mean": mean}, {})

    batch = np.random.default_rng(0).standard_normal((8, 400)).astype(np.float32)
    batch[:, 0] = 1e8
    sizes, exact = {}, None
    for form in ("float32", values):
        tx = optax.chain(optax.sgd(0.01), cdl_jax.sparsify_top_k(1.0, values=form))
        params, stats = {"w": jnp.zeros((400, 1))}, {"mean": jnp.zeros(400)}
        state = cdl_jax.init_state(params, tx, model_state=stats)
        for _ in range(2):
            state, info = cdl_jax.make_step(loss_fn, tx)(state, None, batch)
        sizes[form] = len(cdl_jax.encode_update(jax.device_get(info.update)))
        served = np.asarray(cdl_jax.deployed(state)["model_state"]["mean"])
        exact = served if exact is None else exact
    assert served[0] == exact[0].astype(ml_dtypes.bfloat16)  # beyond float16
    assert np.array_equal(served[1:], exact[1:].astype(kind).astype(np.float32))
    assert sizes[values] < 0.75 * sizes["float32"]
