"""From an optimizer's proposal to a new deployed tree and the update that says the same.

Every mode writes the tree with the same words: (section, indices, values), the replicas' own.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cdl_jax.core import chain, compress, layout, rounding, sections, select, sparsify
from cdl_jax.core.held import Held
from cdl_jax.core.joined import JoinedLeaves, Leaves, join
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.ragged import Ragged, row_sizes
from cdl_jax.core.tree import Sorted, flatten, is_trainable, to_bits, tree_spec

PARAMS, MODEL_STATE = "params", "model_state"


class Proposal(NamedTuple):
    """What the optimizer would like to do."""

    updates: Any
    old_state: Any  # the optimizer's, before
    opt_state: Any  # and after
    model_state: Any  # after


class Entry(NamedTuple):
    """New values of some entries: one section of an update."""

    places: tuple[int, ...]
    indices: jax.Array
    values: jax.Array
    scale: jax.Array | None = None  # with int8 levels


def ship(
    held: Held,
    digest: jax.Array,
    base: jax.Array,
    proposal: Proposal,
    tx: optax.GradientTransformation,
    *,
    update: str,
    uncovered: str,
    model_state_density: float | None,
) -> tuple[Held, SparseUpdate]:
    """Writes a proposal into the deployed tree; options as in `proactive_step`.

    Returns:
      The new tree and the update that leads to it from `held`, of this digest and version.
    """
    spec = tree_spec({"model_state": proposal.model_state, "params": held.params})
    if update == "sparse":
        known = chain.look(tx, _trained(held.params), proposal.old_state)
        sends = None if known.always else _emitted(proposal)
        entries = _selected(held.params, spec, proposal, known.origins, sends, uncovered)
        density = model_state_density
        if density is None:
            density = _density_of(spec, entries)
        compress.top_k(density)  # says which densities can be
        form = chain.sparsifier_state(proposal.opt_state).form
        entries += _moved(held.model_state, spec, proposal, density, sends, form.values)
    elif update in ("dense", "changed"):
        entries = _whole(held, spec, proposal)
    else:
        raise ValueError(f"update is {update!r}; give 'sparse', 'dense' or 'changed'")
    entries = sorted(entries, key=lambda e: e.places)
    if update == "changed":
        entries = _only_changed(held.leaves, spec, entries)
    held, digest = _write(held, spec, digest, entries)
    return held, _update(spec, digest, base, entries)


def replace(
    held: Held, digest: jax.Array, base: jax.Array, new_tree: Any
) -> tuple[Held, SparseUpdate]:
    """The update that leads from `held`, of this digest and version, to all of `new_tree`."""
    spec, new = tree_spec(new_tree), flatten(new_tree)
    entries = [
        Entry((place,), jax.lax.iota(jnp.int32, leaf.size), leaf.reshape(-1))
        for place, leaf in enumerate(new.leaves)
        if leaf.size
    ]
    held, digest = _write(held, spec, digest, entries)
    return held, _update(spec, digest, base, entries)


def nothing(update: SparseUpdate, digest: jax.Array, base: jax.Array) -> SparseUpdate:
    """An update of the same form, from `base` to the next version, that changes nothing."""
    past_any_end = [
        sections.INT32_MAX - k + jax.lax.iota(jnp.int32, k) for k in row_sizes(update.indices)
    ]
    return dataclasses.replace(
        update,
        indices=join(past_any_end),
        values=jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), update.values),
        counts=jnp.zeros(update.counts.shape, jnp.int32),
        scales=jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), update.scales),
        base=base,
        version=base + jnp.uint32(1),
        digest=digest,
    )


def _trained(params: Any) -> Any:
    return jax.tree.map(lambda x: x if is_trainable(x) else None, params)


def _selected(params, spec, proposal, origins, sends, uncovered) -> list[Entry]:
    """What the sparsifier picked, and whole leaves that it does not cover, if asked for."""
    state = chain.sparsifier_state(proposal.opt_state)
    trained = _by_name(flatten(_trained(params)))
    dense = [name for name, origin in origins.items() if origin == "dense" and trained[name].size]
    if dense and uncovered != "ship":
        raise ValueError(
            f"the optax chain changes {', '.join(dense)} behind or beside its sparsifier; put "
            "the sparsifier last and over all leaves, or make_step(..., uncovered='ship') sends "
            "these leaves whole"
        )
    entries = []
    where = sparsify.state_sections(state, spec, PARAMS)
    rows = zip(where, state.indices, state.values, state.scales, strict=True)
    for places, indices, values, scale in rows:
        if not {spec.leaves[i].name[len(PARAMS) + 1 :] for i in places} & set(dense):
            plan = sections.make_section(spec, places, indices.size)
            entries.append(Entry(places, _sent_if(sends, indices, plan), values, scale))
        elif len(places) > 1:
            raise ValueError(
                "global scope cannot ship some of its leaves whole: use scope='tensor'"
            )
    return entries + _dense_leaves(params, spec, proposal, set(dense))


def _emitted(proposal: Proposal) -> jax.Array:
    """Whether the sparsifier sent: MultiSteps hands back old selections on silent micro-steps."""
    states = proposal.opt_state, proposal.old_state
    new, old = (chain.sparsifier_state(state).count for state in states)
    return new != old


def _density_of(spec: layout.TreeSpec, entries: list[Entry]) -> float:
    sizes = sum(spec.leaves[i].size for e in entries for i in e.places)
    return min(1.0, sum(e.indices.size for e in entries) / sizes) if sizes else 1.0


def _moved(
    held: JoinedLeaves,
    spec,
    proposal,
    density: float,
    sends: jax.Array | None,
    values: rounding.Values = "float32",
) -> list[Entry]:
    """The model-state entries that moved most against what the replicas hold.

    What rounding loses is part of what the next step compares.
    """
    new = flatten(proposal.model_state)
    rows = zip(new.names, held.rows.rows, new.leaves, strict=True)
    rows = [row for row in rows if row[2].size]
    if not rows:
        return []
    names, olds, nows = zip(*rows, strict=True)
    ks = tuple(compress.entries_sent(density, now.size) for now in nows)
    chosen = select.most_changed(Ragged(held.rows.arrays, olds), nows, ks)
    places = [_place(spec, MODEL_STATE, name) for name in names]
    plans = [sections.make_section(spec, (i,), k) for i, k in zip(places, ks, strict=True)]
    indices = [_sent_if(sends, at, plan) for at, plan in zip(chosen, plans, strict=True)]
    read = sections.read(
        [plan._replace(places=(i,)) for i, plan in enumerate(plans)],
        nows,
        indices,
    )
    rows = zip(plans, indices, read, strict=True)
    sent = [Entry(plan.places, at, values) for plan, at, values in rows]
    return [
        e._replace(values=rounding.round_absolute(e.values, values))
        if e.values.dtype == jnp.float32
        else e
        for e in sent
    ]


def _sent_if(sends: jax.Array | None, indices: jax.Array, plan: sections.Section) -> jax.Array:
    if sends is None:
        return indices
    return jnp.where(sends, indices, plan.total + jax.lax.iota(jnp.int32, indices.size))


def _whole(held: Held, spec, proposal) -> list[Entry]:
    """Every floating parameter and every model-state leaf."""
    names = {n for n, x in zip(*flatten(held.params)[:2], strict=True) if is_trainable(x)}
    entries = _dense_leaves(held.params, spec, proposal, names)
    return entries + _moved(held.model_state, spec, proposal, 1.0, None)


def _dense_leaves(params, spec, proposal, names: set[str]) -> list[Entry]:
    olds = _by_name(flatten(params))
    updates = _by_name(flatten(proposal.updates))
    entries = []
    for name in sorted(names):
        old = olds[name]
        if old.size:
            new = (old + updates[name].astype(old.dtype)).reshape(-1)
            order = jax.lax.iota(jnp.int32, old.size)
            entries.append(Entry((_place(spec, PARAMS, name),), order, new))
    return entries


def _only_changed(leaves: Leaves, spec, entries: list[Entry]) -> list[Entry]:
    """The same entries without those whose bits stay, compacted to the front."""
    kept = []
    for places, indices, values, _ in entries:
        n = spec.leaves[places[0]].size
        old = to_bits(leaves[places[0]]).reshape(-1)
        order = jax.lax.iota(jnp.int32, n)
        found = (indices < n) & (to_bits(values) != old)
        slot = jnp.cumsum(found, dtype=jnp.int32) - 1
        target = jnp.where(found, slot, n)
        packed = (n + order - slot[-1] - 1).at[target].set(order, mode="drop")
        kept.append(
            Entry(places, packed, jnp.zeros_like(values).at[target].set(values, mode="drop"))
        )
    return kept


def _write(held: Held, spec, digest, entries: list[Entry]) -> tuple[Held, jax.Array]:
    leaves = held.leaves
    plans = [sections.make_section(spec, e.places, e.indices.size) for e in entries]
    indices = [e.indices for e in entries]
    scaled = any(e.scale is not None for e in entries)
    old = sections.read(plans, leaves, indices) if scaled else [None] * len(plans)
    new = [
        sections.resolved(plan, was, e.values, e.scale)
        for plan, was, e in zip(plans, old, entries, strict=True)
    ]
    written, delta = sections.rewrite(plans, leaves, indices, new, old if scaled else ())
    return held.with_leaves(written), digest + delta


def _update(spec, digest, base, entries: list[Entry]) -> SparseUpdate:
    plans = [sections.make_section(spec, e.places, e.indices.size) for e in entries]
    return SparseUpdate(
        indices=join([e.indices for e in entries]),
        values=join([e.values for e in entries]),
        counts=sections.counts(plans, [e.indices for e in entries]),
        base=base,
        version=base + jnp.uint32(1),
        digest=digest,
        sections=tuple(e.places for e in entries),
        fingerprint=spec.fingerprint,
        scales=tuple(e.scale for e in entries),
    )


def _place(spec: layout.TreeSpec, root: str, name: str) -> int:
    return [leaf.name for leaf in spec.leaves].index(layout.join(root, name))


def _by_name(flat: Sorted) -> dict[str, Any]:
    return dict(zip(flat.names, flat.leaves, strict=True))
