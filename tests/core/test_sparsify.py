import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cdl_jax
from cdl_jax.core import compress, select
from tests.core.helpers import bits, chained, check_indices, sparsifier

SHAPES = {"a": (1,), "b": (7, 3), "c": (200,), "d": (2, 2, 5), "e": ()}
STEPS = 50
TINY = np.finfo(np.float32).tiny


def flushed(x):
    """XLA's CPU takes and gives zeros of the same sign for subnormals."""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


class Oracle:
    """Top-k with error feedback in NumPy, on flat arrays; its own residuals."""

    def __init__(self, shapes, density, scope):
        self.density, self.scope = density, scope
        self.residual = {name: np.zeros(int(np.prod(s)), np.float32) for name, s in shapes.items()}

    def step(self, updates):
        """`(acc, sent, residual)` by name, and the selected positions by section."""
        acc = {
            n: flushed(flushed(updates[n].reshape(-1)) + flushed(self.residual[n])) for n in updates
        }
        groups = [sorted(acc)] if self.scope == "global" else [[name] for name in sorted(acc)]
        sent = {name: np.zeros_like(x) for name, x in acc.items()}
        self.residual = {name: x.copy() for name, x in acc.items()}
        picked = [self.pick(acc, group, sent) for group in groups]
        return acc, sent, picked

    def pick(self, acc, group, sent):
        whole = np.concatenate([acc[name] for name in group])
        k = max(1, int(np.floor(self.density * whole.size)))
        positions = np.sort(np.argsort(-np.abs(whole), kind="stable")[:k])
        start = 0
        for name in group:
            mine = positions[(positions >= start) & (positions < start + acc[name].size)] - start
            sent[name][mine] = acc[name][mine]
            self.residual[name][mine] = 0.0
            start += acc[name].size
        return positions


def noise(rng, t):
    return {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}


def signs(rng, t):
    """Adam's first step: the learning rate times a sign, many times over."""
    draw = {name: rng.choice([-1e-3, 1e-3], s) for name, s in SHAPES.items()}
    return {name: np.asarray(x, np.float32) for name, x in draw.items()}


def zeros(rng, t):
    values = np.array([0.0, -0.0, 1.0, -1.0], np.float32)
    return {
        name: np.asarray(rng.choice(values, s, p=[0.5, 0.4, 0.05, 0.05]))
        for name, s in SHAPES.items()
    }


def subnormals(rng, t):
    """Magnitudes 2^-149 to 2^-120: subnormal terms, and subnormal sums of normal ones."""
    out = {}
    for name, shape in SHAPES.items():
        size = np.ldexp(rng.uniform(1, 2, shape), rng.integers(-149, -120, shape))
        out[name] = np.asarray(size * rng.choice([-1, 1], shape), np.float32)
    return out


def infinities(rng, t):
    out = noise(rng, t)
    out["c"][[t % 200, 3]] = np.inf
    out["b"][0, 0] = -np.inf
    return out


SCOPES = ("tensor", "global")
FORMS = ("native", "xla")
EAGER = {(s, f): sparsifier(cdl_jax.top_k(0.05, scope=s)) for s in SCOPES for f in FORMS}
JITTED = {which: jax.jit(tx.update) for which, tx in EAGER.items()}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """The fused kernel where it was built, and XLA's own operations."""
    if request.param == "xla":
        monkeypatch.setattr(select, "available", lambda: False)
    return request.param


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("feed", [noise, signs, zeros, subnormals, infinities])
def test_fifty_steps_are_the_oracle_s_bit_for_bit(feed, scope, form):
    follow(feed, scope, JITTED[scope, form])


@pytest.mark.parametrize("scope", SCOPES)
def test_eager_steps_are_the_oracle_s(scope, form):
    follow(subnormals, scope, EAGER[scope, form].update, steps=1)


def follow(feed, scope, update, steps=STEPS):
    rng = np.random.default_rng(7)
    params = jax.tree.map(jnp.asarray, noise(rng, 0))
    state, oracle = EAGER[scope, "xla"].init(params), Oracle(SHAPES, 0.05, scope)
    for t in range(steps):
        updates = feed(rng, t)
        acc, sent, picked = oracle.step(updates)
        emitted, state = update(updates, state, params)
        for name in SHAPES:
            got, left = bits(emitted[name]), bits(state.residual[name])
            np.testing.assert_array_equal(got, bits(sent[name]))
            np.testing.assert_array_equal(left, bits(oracle.residual[name]))
            partition(bits(acc[name]), got, left)
        for indices, expected in zip(state.indices, picked, strict=True):
            np.testing.assert_array_equal(indices, expected)
    assert int(state.count) == steps


def partition(acc, sent, left):
    """Every entry is in one of the two, and +0.0 in the other."""
    assert (((sent == acc) & (left == 0)) | ((left == acc) & (sent == 0))).all()


@pytest.mark.parametrize("compressor", [
    cdl_jax.random_k(0.1), cdl_jax.random_k(0.1, scope="global"), cdl_jax.top_k(1.0)
])  # fmt: skip
def test_sent_and_residual_partition_acc(compressor):
    tx = sparsifier(compressor)
    rng, update = np.random.default_rng(0), jax.jit(tx.update)
    params = jax.tree.map(jnp.asarray, noise(rng, 0))
    start = state = tx.init(params)
    seen = set()
    for t in range(10):
        updates, old = noise(rng, t), state
        emitted, state = update(updates, old, params)
        for name, u in updates.items():
            acc = flushed(u.reshape(-1) + np.asarray(old.residual[name]).reshape(-1))
            partition(bits(acc), bits(emitted[name]), bits(state.residual[name]))
        for indices, spare in zip(state.indices, start.indices, strict=True):
            check_indices(np.asarray(indices), indices.size, int(spare[0]))
        seen.add(tuple(int(i) for positions in state.indices for i in positions))
    assert compressor.density == 1 or len(seen) > 1


def test_values_are_the_parameters_after_the_step():
    tx = sparsifier(cdl_jax.top_k(0.1, scope="global"))
    rng = np.random.default_rng(3)
    params = jax.tree.map(jnp.asarray, noise(rng, 0))
    updates = noise(rng, 1)
    _, state = jax.jit(tx.update)(updates, tx.init(params), params)
    old = np.concatenate([np.asarray(params[n]).reshape(-1) for n in sorted(params)])
    new = np.concatenate([(np.asarray(params[n]) + updates[n]).reshape(-1) for n in sorted(params)])
    np.testing.assert_array_equal(state.values[0], new[np.asarray(state.indices[0])])
    assert (old[np.asarray(state.indices[0])] != np.asarray(state.values[0])).all()


@pytest.mark.parametrize(
    ("dtypes", "compressor"),
    [
        (("bfloat16", "bfloat16"), cdl_jax.top_k(0.1)),
        (("bfloat16", "bfloat16"), cdl_jax.top_k(0.1, scope="global")),
        (("float16", "bfloat16"), cdl_jax.quantize(4)),
        (("bfloat16", "float32"), cdl_jax.top_k(0.1, scope="global")),
        (("float16", "float32"), cdl_jax.random_k(0.2)),
    ],
)
def test_narrow_leaves_lose_no_mass(dtypes, compressor):
    tx = sparsifier(compressor)
    update = jax.jit(tx.update)
    for scale in (1e-4, 1e-1):
        lose_no_mass(tx, update, dtypes, compressor.scope, scale)
    assert update._cache_size() == 1


def lose_no_mass(tx, update, dtypes, scope, scale):
    rng = np.random.default_rng(5)
    params = {str(i): jnp.asarray(rng.normal(size=50), t) for i, t in enumerate(dtypes)}
    start, state = wide(params), tx.init(params)
    total = jax.tree.map(np.zeros_like, start)
    for _ in range(100):
        updates = {n: jnp.asarray(scale * rng.normal(size=50), p.dtype) for n, p in params.items()}
        emitted, state = update(updates, state, params)
        total = jax.tree.map(np.add, total, wide(updates))
        params = write(params, state, scope)
        assert jax.tree.map(lambda x: x.dtype, emitted) == jax.tree.map(lambda x: x.dtype, params)
    assert {r.dtype.name for r in state.residual.values()} == {"float32"}
    for name in params:
        applied = wide(params)[name] - start[name]
        # Additions to a float32 parameter round at 1, those to a residual at its own size.
        near = 100 * 2.0**-24 * (4 if params[name].dtype == np.float32 else 100 * scale)
        np.testing.assert_allclose(applied + wide(state.residual)[name], total[name], atol=near)
        assert np.abs(applied).max() > 0


def wide(tree):
    return {name: np.asarray(x).astype(np.float64) for name, x in tree.items()}


def write(params, state, scope):
    leaves = {name: np.array(x) for name, x in params.items()}
    words = [bits(v) for v in state.values]
    start = 0
    for i, name in enumerate(leaves):
        indices = np.asarray(state.indices[0 if scope == "global" else i])
        local = indices - (start if scope == "global" else 0)
        mine = (local >= 0) & (local < leaves[name].size)
        view = leaves[name].view(f"u{leaves[name].dtype.itemsize}")
        view[local[mine]] = words[0 if scope == "global" else i][mine].astype(view.dtype)
        start += leaves[name].size
    return {name: jnp.asarray(x) for name, x in leaves.items()}


def test_errors_say_what_to_do():
    tx = cdl_jax.sparsify_top_k(0.1)
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match=r"differ in the leaves \['b'\]"):
        tx.update({"a": jnp.ones(3)}, tx.init(params), params)
    with pytest.raises(ValueError, match="density is 2"):
        cdl_jax.sparsify_top_k(2)
    with pytest.raises(TypeError, match=r"needs a compressor, got 0.1; give top_k\(density\)"):
        cdl_jax.error_feedback(0.1)


def test_tensors_beyond_int32_positions_are_named():
    big = {"w": jax.ShapeDtypeStruct((2**31 - 10**6,), jnp.float32)}
    fits = jax.eval_shape(cdl_jax.sparsify_top_k(1e-6).init, big)
    assert fits.indices[0].shape == (2146,)
    with pytest.raises(ValueError, match=r"the tensor w of 2146483648 entries.*; split it"):
        jax.eval_shape(cdl_jax.sparsify_top_k(1e-2).init, big)
    two = {"a": big["w"], "b": big["w"]}
    with pytest.raises(ValueError, match="2 tensors of 4292967296 entries.*; use scope='tensor'"):
        jax.eval_shape(cdl_jax.sparsify_top_k(1e-6, scope="global").init, two)


def test_global_scope_refuses_eight_byte_leaves_beside_narrower_ones():
    with jax.enable_x64(True), pytest.raises(ValueError, match="float64"):
        cdl_jax.sparsify_top_k(0.1, scope="global").init(
            {"a": jnp.ones(3, jnp.float64), "b": jnp.ones(3, jnp.float32)}
        )


def test_eight_byte_leaves_follow_their_own_precision():
    with jax.enable_x64(True):
        params = {"a": jnp.arange(10.0) / 3}
        tx = chained(optax.sgd(1.0), sparsifier(cdl_jax.top_k(0.2)))
        grads = {"a": jnp.asarray(np.random.default_rng(0).normal(size=10))}
        _, (_, state) = jax.jit(tx.update)(grads, tx.init(params), params)
        chosen = np.sort(np.argsort(-np.abs(np.asarray(grads["a"])))[:2])
        np.testing.assert_array_equal(state.indices[0], chosen)
        expected = (np.arange(10.0) / 3 - np.asarray(grads["a"]))[chosen]
        assert state.values[0].dtype == np.float64
        np.testing.assert_array_equal(state.values[0], expected)


def test_a_compressor_of_ones_own_may_give_tuples():
    def first_entries(updates, residuals, ks, *, global_scope, key):
        del ks, global_scope, key
        accs = [(u + r).reshape(-1) for u, r in zip(updates, residuals, strict=True)]
        at = tuple(jnp.zeros(1, jnp.int32) for _ in accs)
        return at, tuple(acc[:1] for acc in accs), tuple(acc.at[0].set(0) for acc in accs)

    own = compress.Compressor(0.5, "tensor", lambda n: 1, first_entries)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    tx = cdl_jax.error_feedback(own)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert updates["a"].tolist() == [1, 0]
    assert updates["b"].tolist() == [1, 0, 0]
    assert [at.tolist() for at in state.indices] == [[0], [0]]
