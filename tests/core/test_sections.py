"""Reading and writing the entries of many leaves: kernel and XLA against NumPy, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_jax.core import digest, layout, ragged, sections
from cdl_jax.core.joined import Leaves
from cdl_jax.native import available
from tests.core.helpers import bits

SHAPES = [(3, 4), (), (7,), (2, 3, 5)]
KINDS = {
    "float32": ["float32"] * 4,
    "bytes": ["int8", "uint8", "bool", "int8"],
    "mixed": ["bfloat16", "float32", "float16", "int32"],
}
PLACES = {"tensor": [(0,), (1,), (2,), (3,)], "global": [(0, 1, 2, 3)], "some": [(1, 3), (2,)]}


@pytest.fixture(params=["native", "xla", "apart"], autouse=True)
def form(request, monkeypatch):
    if request.param == "apart":  # the kernels, with rows in many arrays
        monkeypatch.setattr(ragged, "LARGE", 8)
    if request.param == "xla":
        monkeypatch.setattr(sections, "available", lambda: False)
    elif not available():
        pytest.skip("the kernels are not built")


def leaves_of(kind, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for shape, dtype in zip(SHAPES, KINDS[kind], strict=True):
        if dtype == "bool":
            out.append(rng.integers(0, 2, shape).astype(bool))
        else:
            width = layout.dtype_of(dtype).itemsize
            words = rng.integers(0, 256, (*shape, width), np.uint8)
            out.append(words.view(layout.dtype_of(dtype)).reshape(shape))
    return out


def case(kind, places):
    """Plans, leaves, per section ascending indices with padding, and new bits."""
    leaves = leaves_of(kind)
    spec = layout.TreeSpec(
        tuple(layout.LeafSpec(f"l{i}", x.shape, x.dtype.name) for i, x in enumerate(leaves))
    )
    plans = [sections.make_section(spec, p, 4) for p in PLACES[places]]
    rng = np.random.default_rng(1)
    indices, new = [], []
    other = [x.reshape(-1) for x in leaves_of(kind, seed=7)]
    for plan in plans:
        k = min(9, plan.total)
        at = np.sort(rng.choice(plan.total, k, replace=False))
        words = np.concatenate([bits(other[i]).astype(plan.bits) for i in plan.places])[at]
        indices.append(np.concatenate([at, plan.total + np.arange(3)]).astype(np.int32))
        new.append(np.concatenate([words, np.full(3, 77)]).astype(plan.bits))
    return plans, leaves, indices, new


def flat_bits(plan, leaves):
    return np.concatenate([bits(leaves[i]).reshape(-1).astype(plan.bits) for i in plan.places])


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_read_gives_the_bits_and_zeros_for_padding(kind, places):
    plans, leaves, indices, _ = case(kind, places)
    found = jax.jit(lambda x, at: sections.read(plans, x, at))(leaves, indices)
    for plan, at, got in zip(plans, indices, found, strict=True):
        assert got.dtype == plan.dtype
        words = np.asarray(sections.carry(plan, got))
        np.testing.assert_array_equal(words[:-3], flat_bits(plan, leaves)[at[:-3]])
        assert not words[-3:].any()


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_write_changes_these_bits_alone(kind, places):
    plans, leaves, indices, new = case(kind, places)
    written = jax.jit(lambda x, at, b: sections.write(plans, x, at, b))(leaves, indices, new)
    assert [x.shape for x in written] == SHAPES
    assert [x.dtype.name for x in written] == KINDS[kind]
    expected = [bits(x).reshape(-1).copy() for x in leaves]
    for plan, at, words in zip(plans, indices, new, strict=True):
        ends = layout.ends(plan.sizes)
        for i, word in zip(at[:-3], words[:-3], strict=True):
            t = int(np.searchsorted(ends[1:], i, side="right"))
            leaf = expected[plan.places[t]]
            leaf[i - ends[t]] = word.astype(leaf.dtype)
    for got, want in zip(written, expected, strict=True):
        np.testing.assert_array_equal(bits(np.asarray(got)).reshape(-1), want)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_change_is_the_difference_of_full_digests(kind, places):
    plans, leaves, indices, new = case(kind, places)
    held = [jnp.asarray(x) for x in leaves]
    after = sections.write(plans, held, indices, new)
    delta = jax.jit(lambda *args: sections.change(plans, *args))(held, indices, new)
    before, now = (
        digest.numpy_digest({f"l{i}": np.asarray(x) for i, x in enumerate(tree)})
        for tree in (leaves, after)
    )
    np.testing.assert_array_equal(before + np.asarray(delta), now)
    written, same = jax.jit(lambda *args: sections.rewrite(plans, *args))(held, indices, new)
    np.testing.assert_array_equal(same, delta)
    values = [sections.uncarry(plan, jnp.asarray(x)) for plan, x in zip(plans, new, strict=True)]
    written, same = jax.jit(lambda *args: sections.rewrite(plans, *args))(held, indices, values)
    np.testing.assert_array_equal(same, delta)
    for got, want in zip(written, after, strict=True):
        np.testing.assert_array_equal(bits(np.asarray(got)), bits(np.asarray(want)))


def in_few_arrays(leaves):
    """Those of one dtype end to end, whatever their shapes."""
    rows, members = ragged.arrange([x.size for x in leaves], [x.dtype for x in leaves])
    arrays = [np.concatenate([leaves[i].reshape(-1) for i in each]) for each in members]
    return Leaves(tuple(map(jnp.asarray, arrays)), rows)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_leaves_in_few_arrays_are_as_in_their_own(kind, places):
    plans, leaves, indices, new = case(kind, places)
    few, leaves = in_few_arrays(leaves), [jnp.asarray(x) for x in leaves]
    for got, want in zip(
        sections.read(plans, few, indices), sections.read(plans, leaves, indices), strict=True
    ):
        np.testing.assert_array_equal(bits(np.asarray(got)), bits(np.asarray(want)))
    written, delta = jax.jit(lambda *args: sections.rewrite(plans, *args))(few, indices, new)
    wanted, same = sections.rewrite(plans, leaves, indices, new)
    np.testing.assert_array_equal(delta, same)
    np.testing.assert_array_equal(sections.change(plans, few, indices, new), same)
    assert written.rows == few.rows
    for form in (written, sections.write(plans, few, indices, new)):
        for got, want in zip(form, wanted, strict=True):
            np.testing.assert_array_equal(
                bits(np.asarray(got)).reshape(-1), bits(np.asarray(want)).reshape(-1)
            )


def test_no_sections_are_no_work():
    leaves = [jnp.ones(3)]
    assert len(sections.read([], leaves, [])) == 0
    assert list(sections.write([], leaves, [], [])) == leaves
    assert not sections.change([], [], [], []).any()
    written, delta = sections.rewrite([], leaves, [], [])
    assert list(written) == leaves
    assert not delta.any()


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 9)), max_size=6)
)
def test_slots_in_use_are_those_before_the_padding(kinds):
    plans, rows = [], []
    for place, (used, missed, padding) in enumerate(kinds):
        size = max(1, used + missed)
        at = np.sort(np.random.default_rng(place).permutation(size)[:used])
        rows.append(jnp.asarray(np.concatenate([at, size + np.arange(padding)]), jnp.int32))
        seeds = np.zeros((4, 1), np.uint32)
        plans.append(sections.Section((place,), (size,), seeds, ("float32",)))
    assert sections.counts(plans, rows).tolist() == [used for used, _, _ in kinds]


@pytest.mark.parametrize("slots", [1, 2, 15, 16, 17, 255, 257, 4097])
def test_every_count_is_found(slots):
    plan = _plan(10 * slots)
    for used in {0, 1, slots // 3, slots // 2, slots - 1, slots}:
        ends = np.full(slots - used, plan.total, np.int32) + np.arange(slots - used)
        row = jnp.asarray(np.concatenate([np.arange(used) * 10, ends]), jnp.int32)
        assert sections.counts([plan], [row]).tolist() == [used]


def test_counting_slots_is_a_program_of_few_rounds():
    row = jax.ShapeDtypeStruct((1 << 18,), jnp.int32)
    program = jax.make_jaxpr(lambda rows: sections.counts([_plan(1 << 20)], rows))([row])
    assert str(program).count("gather[") <= 5


def _plan(total):
    return sections.Section((0,), (total,), np.zeros((4, 1), np.uint32), ("float32",))
