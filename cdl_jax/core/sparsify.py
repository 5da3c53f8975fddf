"""Sparsification with error feedback, as optax gradient transformations."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from cdl_jax.core import compress, layout, rounding, sections
from cdl_jax.core.joined import JoinedLeaves, join, over, room
from cdl_jax.core.ragged import Ragged
from cdl_jax.core.tree import Sorted, flatten, is_trainable, to_bits

MARK = "cdl_jax.sparsified"  # names the transform's output in the jaxpr, see core.chain


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Form:
    """How new values are sent; a node without leaves."""

    values: rounding.Values


class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback`: the residual, and what the last step selected."""

    count: jax.Array  # int32 [], updates emitted
    residual: JoinedLeaves  # of the floating leaves by path; float32 for 16-bit ones
    indices: Sequence[jax.Array]  # Ragged, per section int32 [k]
    values: Sequence[jax.Array]  # Ragged, per section [k], new values, or int8 levels
    scales: tuple[Any, ...]  # per section float32 [] with levels, else None
    form: Any  # Form


def error_feedback(
    compressor: compress.Compressor, *, seed: int = 0
) -> optax.GradientTransformation:
    r"""Sends a compressed update and keeps the rest for the next step.

    With update :math:`u_t` and residual :math:`r_t`,

    .. math:: a_t = u_t + r_t, \quad s_t = C(a_t), \quad r_{t+1} = a_t - s_t,

    where the transform emits :math:`s_t`. Put it last in a chain and a step changes no more
    entries than the compressor sends; `cdl_jax.make_step` reads what was selected from the
    state. For leaves of 16 bits the residual is float32 and keeps what the parameter's own
    rounding loses.

    Args:
      compressor: `top_k`, `random_k` or `quantize`.
      seed: of the compressor's random draws.

    Returns:
      A transform whose `update` needs `params`. Non-floating leaves pass through.

    Raises:
      TypeError: for something else than a compressor.
      ValueError: when `update` is called without params.

    Examples:
      >>> tx = error_feedback(compress.top_k(0.25))
      >>> params = {"w": jnp.zeros(4)}
      >>> updates, _ = tx.update({"w": jnp.array([1., -3., 2., 0.])}, tx.init(params), params)
      >>> updates["w"].tolist()
      [0.0, -3.0, 0.0, 0.0]

    References:
      Prapas et al. 2021, section 4; Stich et al., Sparsified SGD with Memory, 2018.
    """
    if not isinstance(compressor, compress.Compressor):
        raise TypeError(
            f"error_feedback needs a compressor, got {compressor!r}; give top_k(density), "
            "random_k(density) or quantize(bits)"
        )
    global_scope, form = compressor.scope == "global", Form(compressor.values)

    def init_fn(params: Any) -> ErrorFeedbackState:
        plans = _plans(params, compressor)
        spare = [_spare(compressor, plan) for plan in plans]
        return ErrorFeedbackState(
            count=jnp.zeros((), jnp.int32),
            residual=_no_residual(params, plans),
            indices=join(spare),
            values=join(
                [
                    jnp.zeros(s.size, jnp.int8 if _has_levels(compressor, p) else p.dtype)
                    for s, p in zip(spare, plans, strict=True)
                ]
            ),
            scales=tuple(
                jnp.ones((), jnp.float32) if _has_levels(compressor, p) else None for p in plans
            ),
            form=form,
        )

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError(
                "error_feedback needs the params: call tx.update(grads, state, params)"
            )
        flat_u, flat_p, old = flatten(updates), flatten(params), state.residual.rows
        _check_structure(flat_u, flat_p)
        plans = _plans(params, compressor)
        if not plans:
            return updates, state._replace(count=state.count + 1)
        members = [i for plan in plans for i in plan.places]
        wide = {i: _residual_dtype(flat_p.leaves[i]) for i in members}
        indices, sent, kept = compressor.compress(
            [flat_u.leaves[i].astype(wide[i]) for i in members],
            old,
            tuple(compressor.slots(plan.total) for plan in plans),
            global_scope=global_scope,
            key=jax.random.fold_in(jax.random.key(seed), state.count),
        )
        # A compressor of somebody's own gives tuples.
        indices, sent, kept = join(indices), join(sent), join(kept)
        outgoing, olds = list(flat_u.leaves), sections.read(plans, flat_p.leaves, indices)
        if compressor.values == "float32" and all(_is_exact(plan, wide) for plan in plans):
            moved, values, scales = sent, over(jnp.add, olds, sent), (None,) * len(plans)
        else:
            residual = dict(zip(members, kept, strict=True))
            moved, values, scales = _new_values(
                plans, indices, olds, sent, residual, compressor.values
            )
            kept = join([residual[i] for i in members])
        zeros = [jnp.zeros(flat_u.leaves[i].shape, wide[i]) for i in members]
        for i, leaf in zip(members, _dense(plans, indices, moved, zeros), strict=True):
            outgoing[i] = checkpoint_name(leaf.astype(outgoing[i].dtype), MARK)
        residual = dataclasses.replace(state.residual, rows=kept)
        new_state = ErrorFeedbackState(state.count + 1, residual, indices, values, scales, form)
        return flat_u.rebuild(outgoing), new_state

    return optax.GradientTransformation(init_fn, update_fn)


def sparsify_top_k(
    density: float, *, scope: compress.Scope = "tensor", values: rounding.Values = "float32"
) -> optax.GradientTransformation:
    """Top-k sparsification with error feedback: `error_feedback(top_k(density, ...))`.

    Args:
      density: share of entries sent, in (0, 1]; max(1, floor(density * n)) of n entries are.
      scope: "tensor" (the paper's) or "global".
      values: "float32", "bf16", "f16", "int8", "int4" or "int2", see `top_k`.

    Raises:
      ValueError: for a density outside (0, 1], an unknown scope or form of values.

    Examples:
      >>> tx = optax.chain(optax.amsgrad(1e-3), sparsify_top_k(density=1e-3))

    References:
      Prapas et al. 2021, section 4.
    """
    return error_feedback(compress.top_k(density, scope=scope, values=values))


def state_sections(state: ErrorFeedbackState, spec: layout.TreeSpec, root: str) -> list[tuple]:
    """The sections of a sparsifier's selection, as places in the sorted leaves of `spec`."""
    names = [leaf.name for leaf in spec.leaves]
    covered = [names.index(layout.join(root, name)) for name in state.residual]
    if len(state.indices) == len(covered):
        return [(place,) for place in covered]
    return [tuple(covered)]


def _plans(params: Any, compressor: compress.Compressor) -> list[sections.Section]:
    """One section per tensor, or one for all, over the non-empty floating leaves."""
    flat = flatten(params)
    spec = layout.TreeSpec(
        tuple(
            layout.LeafSpec(name, leaf.shape, leaf.dtype.name)
            for name, leaf in zip(flat.names, flat.leaves, strict=True)
        )
    )
    places = [i for i, x in enumerate(flat.leaves) if x.size and is_trainable(x)]
    groups = [tuple(places)] if compressor.scope == "global" and places else [(i,) for i in places]
    mixed = len(groups) == 1 and len({flat.leaves[i].dtype for i in groups[0]}) > 1
    if compressor.values != "float32" and mixed:
        raise ValueError(
            f"global scope cannot send {compressor.values} values of leaves of several dtypes"
        )
    if len({_residual_dtype(flat.leaves[i]) for g in groups for i in g}) > 1 and len(groups) == 1:
        raise ValueError("global scope cannot mix float64 leaves with narrower ones")
    sizes = [sum(spec.leaves[i].size for i in group) for group in groups]
    rooms = [compressor.slots(size) for size in sizes]
    return [sections.make_section(spec, *each) for each in zip(groups, rooms, strict=True)]


def _check_structure(updates: Sorted, params: Sorted) -> None:
    if updates.names != params.names:
        odd = sorted(set(updates.names) ^ set(params.names))
        raise ValueError(
            f"updates and params differ in the leaves {odd}; leave a frozen leaf None in both"
        )


def _spare(compressor: compress.Compressor, plan: sections.Section) -> jax.Array:
    return plan.total + jax.lax.iota(jnp.int32, compressor.slots(plan.total))


def _has_levels(compressor: compress.Compressor, plan: sections.Section) -> bool:
    return compressor.values in rounding.BITS and set(plan.dtypes) == {"float32"}


def _dense(plans, indices, increments, zeros: list[jax.Array]) -> Sequence[jax.Array]:
    """The increments as dense leaves, in the order of the plans: zeros but at the indices."""
    firsts = layout.ends([len(plan.places) for plan in plans]).tolist()
    alone = [
        _alone(plan, zeros[first].dtype, first)
        for plan, first in zip(plans, firsts[:-1], strict=True)
    ]
    return sections.write(alone, zeros, indices, increments)


def _new_values(
    plans: list[sections.Section],
    indices: Ragged,
    olds: Ragged,
    sent: Ragged,
    residual: dict[int, jax.Array],
    values: rounding.Values,
) -> tuple[Sequence[jax.Array], Ragged, tuple[Any, ...]]:
    """What each section moves by, its new values, and their scales; what they lose is kept."""
    made = []
    for plan, at, old, increments in zip(plans, indices, olds, sent, strict=True):
        if values != "float32" and set(plan.dtypes) == {"float32"}:
            made.append(_narrowed(plan, at, old, increments, residual, values))
        else:
            made.append(_widest(plan, at, old, increments, residual))
    new, scales, moved = zip(*made, strict=True)
    return moved, join(new), scales


def _is_exact(plan: sections.Section, wide: dict[int, Any]) -> bool:
    """Whether every leaf is as wide as its residual."""
    return all(layout.dtype_of(d) == wide[i] for i, d in zip(plan.places, plan.dtypes, strict=True))


def _widest(plan, indices, old, increments, residual) -> rounding.Rounded:
    """New values in the leaves' own dtypes; the residual keeps what 16-bit leaves lose."""
    if _is_exact(plan, {i: residual[i].dtype for i in plan.places}):
        return rounding.Rounded(old + increments, None, increments)
    values, moved = _round(plan, indices, old, increments)
    _keep(plan, indices, increments - moved, residual)
    return rounding.Rounded(values, None, increments)


def _narrowed(plan, indices, old, increments, residual, values) -> rounding.Rounded:
    """New values narrower than their float32 leaves; the residual keeps what that loses."""
    sent = rounding.round_entries(old, increments, values)
    _keep(plan, indices, increments - sent.moved, residual)
    return sent


def _keep(plan, indices, left, residual: dict[int, jax.Array]) -> None:
    """Adds what was not sent of the entries to their residuals."""
    left = jnp.where(indices < plan.total, left, jnp.zeros((), left.dtype))
    wide, flats = _alone(plan, left.dtype), [residual[i] for i in plan.places]
    # Quantised increments leave something at their positions already, hence the sum.
    there = sections.read([wide], flats, [indices])[0]
    kept = sections.write([wide], flats, [indices], [there + left])
    residual.update(zip(plan.places, kept, strict=True))


def _round(plan, indices, old, increments) -> tuple[jax.Array, jax.Array]:
    """New values, and the change that each makes once rounded to its leaf's dtype."""
    ends = jnp.asarray(layout.ends(plan.sizes)[:-1].astype("int32"))
    leaf = jnp.searchsorted(ends, indices, side="right") - 1
    old = sections.carry(plan, old)
    values = jnp.zeros_like(old)
    moved = jnp.zeros_like(increments)
    for dtype in sorted(set(plan.dtypes)):
        kind = layout.dtype_of(dtype)
        mine = jnp.asarray([t == dtype for t in plan.dtypes])[leaf]
        bits = old.astype(layout.bits_dtype(kind))
        before = jax.lax.bitcast_convert_type(bits, kind).astype(increments.dtype)
        after = (before + increments).astype(kind)
        values = jnp.where(mine, to_bits(after).astype(values.dtype), values)
        moved = jnp.where(mine, after.astype(moved.dtype) - before, moved)
    exact = jnp.asarray([layout.dtype_of(t) == increments.dtype for t in plan.dtypes])[leaf]
    return sections.uncarry(plan, values), jnp.where(exact, increments, moved)


def _alone(plan: sections.Section, dtype: Any, first: int = 0) -> sections.Section:
    """The section over leaves of one dtype that are its own from `first` on in a list."""
    count = len(plan.sizes)
    places = tuple(range(first, first + count))
    return sections.Section(places, plan.sizes, plan.seeds, (dtype.name,) * count)


def _no_residual(params: Any, plans: list[sections.Section]) -> JoinedLeaves:
    """Zeros for all leaves of the plans."""
    flat, members = flatten(params), [i for plan in plans for i in plan.places]
    leaves = [flat.leaves[i] for i in members]
    shapes, rows = room([x.size for x in leaves], [_residual_dtype(x) for x in leaves])
    zeros = Ragged(tuple(jnp.zeros(x.shape, x.dtype) for x in shapes), rows)
    names = tuple(flat.names[i] for i in members)
    return JoinedLeaves(zeros, names, tuple(x.shape for x in leaves))


def _residual_dtype(leaf: Any) -> Any:
    return leaf.dtype if leaf.dtype.itemsize == 8 else jnp.dtype(jnp.float32)
