"""From an optimizer's proposal to a new deployed tree and the update that says the same.

Every mode writes the tree with the same words: (section, indices, values), the replicas' own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cdl_jax.core import chain, compress, layout, sections, sparsify
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.tree import Sorted, flatten, is_trainable, to_bits, tree_spec

PARAMS, MODEL_STATE = "params", "model_state"


class Proposal(NamedTuple):
    """What the optimizer would like to do."""

    updates: Any
    old_state: Any  # the optimizer's, before
    opt_state: Any  # and after
    model_state: Any  # after
    accept: jax.Array  # bool []


class Entry(NamedTuple):
    """New values of some entries: one section of an update."""

    places: tuple[int, ...]
    indices: jax.Array
    values: jax.Array


class Shipped(NamedTuple):
    """The deployed tree after a step, its digest, and the entries that lead to it."""

    tree: Any
    digest: jax.Array
    entries: list[Entry]
    spec: layout.TreeSpec

    def update(self, base: jax.Array, version: jax.Array) -> SparseUpdate:
        """The entries as an update from `base` to `version`."""
        totals = [sum(self.spec.leaves[i].size for i in e.places) for e in self.entries]
        counts = [
            jnp.sum(e.indices < n, dtype=jnp.int32)
            for e, n in zip(self.entries, totals, strict=True)
        ]
        return SparseUpdate(
            indices=tuple(e.indices for e in self.entries),
            values=tuple(e.values for e in self.entries),
            counts=jnp.stack(counts) if counts else jnp.zeros(0, jnp.int32),
            base=base,
            version=version,
            digest=self.digest,
            sections=tuple(e.places for e in self.entries),
            fingerprint=self.spec.fingerprint,
        )


def ship(
    tree: Any,
    digest: jax.Array,
    proposal: Proposal,
    tx: optax.GradientTransformation,
    *,
    update: str,
    uncovered: str,
    model_state_density: float | None,
) -> Shipped:
    """Writes a proposal into the deployed tree; options as in `proactive_step`."""
    spec = tree_spec(tree)
    if update == "sparse":
        entries = _selected(tree, spec, proposal, tx, uncovered)
        density = model_state_density
        if density is None:
            density = _density_of(spec, entries)
        compress.top_k(density)  # says which densities can be
        entries += _moved(tree, spec, proposal, density, _emitted(proposal))
    elif update in ("dense", "changed"):
        entries = _whole(tree, spec, proposal)
    else:
        raise ValueError(f"update is {update!r}; give 'sparse', 'dense' or 'changed'")
    entries = sorted(entries, key=lambda e: e.places)
    if update == "changed":
        entries = _only_changed(tree, spec, entries)
    return _write(tree, spec, digest, entries)


def _selected(tree, spec, proposal, tx, uncovered) -> list[Entry]:
    """What the sparsifier picked, and whole leaves that it does not cover, if asked for."""
    state = chain.sparsifier_state(proposal.opt_state)
    emitted = _emitted(proposal)
    trained = jax.tree.map(lambda x: x if is_trainable(x) else None, tree["params"])
    origins = chain.leaf_origins(tx, trained, proposal.old_state)
    params = _by_name(flatten(trained))
    dense = [name for name, origin in origins.items() if origin == "dense" and params[name].size]
    if dense and uncovered != "ship":
        raise ValueError(
            f"the optax chain changes {', '.join(dense)} behind or beside its sparsifier; put "
            "the sparsifier last and over all leaves, or make_step(..., uncovered='ship') sends "
            "these leaves whole"
        )
    if "deaf" in origins.values():
        raise ValueError(
            "a wrapper in the optax chain keeps the extra argument `accept` from the sparsifier, "
            "so a non-finite step could not be skipped; pass **extra_args on and wrap it as an "
            "optax.GradientTransformationExtraArgs"
        )
    entries = []
    for places, indices, values in zip(
        sparsify.state_sections(state, spec, PARAMS), state.indices, state.values, strict=True
    ):
        if not {spec.leaves[i].name[len(PARAMS) + 1 :] for i in places} & set(dense):
            total = sum(spec.leaves[i].size for i in places)
            spare = total + jax.lax.iota(jnp.int32, indices.size)
            entries.append(Entry(places, jnp.where(emitted, indices, spare), values))
        elif len(places) > 1:
            raise ValueError(
                "global scope cannot ship some of its leaves whole: use scope='tensor'"
            )
    names = set(dense)
    return entries + _dense_leaves(tree, spec, proposal, names)


def _emitted(proposal: Proposal) -> jax.Array:
    """Whether the sparsifier sent: MultiSteps hands back old selections on silent micro-steps."""
    states = proposal.opt_state, proposal.old_state
    new, old = (chain.sparsifier_state(state).count for state in states)
    return new != old


def _density_of(spec: layout.TreeSpec, entries: list[Entry]) -> float:
    sizes = sum(spec.leaves[i].size for e in entries for i in e.places)
    return min(1.0, sum(e.indices.size for e in entries) / sizes) if sizes else 1.0


def _moved(tree, spec, proposal, density: float, sends: jax.Array) -> list[Entry]:
    """The model-state entries that moved most against what the replicas hold."""
    served, new = flatten(tree["model_state"]), flatten(proposal.model_state)
    entries = []
    for name, old, now in zip(served.names, served.leaves, new.leaves, strict=True):
        if not old.size:
            continue
        k = compress.entries_sent(density, old.size)
        indices = jnp.sort(jax.lax.top_k(_distance(old, now), k)[1].astype(jnp.int32))
        spare = old.size + jax.lax.iota(jnp.int32, k)
        indices = jnp.where(sends, indices, spare)
        values = now.reshape(-1).at[indices].get(mode="fill", fill_value=0)
        entries.append(Entry((_place(spec, MODEL_STATE, name),), indices, values))
    return entries


def _whole(tree, spec, proposal) -> list[Entry]:
    """Every floating parameter and every model-state leaf."""
    names = {n for n, x in zip(*flatten(tree["params"])[:2], strict=True) if is_trainable(x)}
    return _dense_leaves(tree, spec, proposal, names) + _moved(
        tree, spec, proposal, 1.0, proposal.accept
    )


def _dense_leaves(tree, spec, proposal, names: set[str]) -> list[Entry]:
    params = _by_name(flatten(tree["params"]))
    updates = _by_name(flatten(proposal.updates))
    entries = []
    for name in sorted(names):
        old = params[name]
        if old.size:
            new = (old + updates[name].astype(old.dtype)).reshape(-1)
            order = jax.lax.iota(jnp.int32, old.size)
            indices = jnp.where(proposal.accept, order, order + old.size)
            entries.append(Entry((_place(spec, PARAMS, name),), indices, new))
    return entries


def _only_changed(tree, spec, entries: list[Entry]) -> list[Entry]:
    """The same entries without those whose bits stay, compacted to the front."""
    flat = flatten(tree)
    kept = []
    for places, indices, values in entries:
        n = spec.leaves[places[0]].size
        old = to_bits(flat.leaves[places[0]]).reshape(-1)
        order = jax.lax.iota(jnp.int32, n)
        found = (indices < n) & (to_bits(values) != old)
        slot = jnp.cumsum(found, dtype=jnp.int32) - 1
        target = jnp.where(found, slot, n)
        packed = (n + order - slot[-1] - 1).at[target].set(order, mode="drop")
        kept.append(
            Entry(places, packed, jnp.zeros_like(values).at[target].set(values, mode="drop"))
        )
    return kept


def _write(tree, spec, digest, entries: list[Entry]) -> Shipped:
    flat = flatten(tree)
    flats = [leaf.reshape(-1) for leaf in flat.leaves]
    plans = [sections.make_section(spec, e.places, e.indices.size) for e in entries]
    olds = [
        sections.gather(plan, [flats[i] for i in plan.places], e.indices)
        for plan, e in zip(plans, entries, strict=True)
    ]
    # Order matters: what is read must be read before the write, else XLA copies the parameters.
    flats, olds = jax.lax.optimization_barrier((flats, olds))
    for plan, entry, old in zip(plans, entries, olds, strict=True):
        bits = sections.carry(plan, entry.values)
        digest = digest + sections.change(plan, entry.indices, old, bits)
        part = [flats[i] for i in plan.places]
        written = sections.scatter(plan, part, entry.indices, bits)
        for i, leaf in zip(plan.places, written, strict=True):
            flats[i] = leaf
    leaves = [f.reshape(x.shape) for f, x in zip(flats, flat.leaves, strict=True)]
    return Shipped(flat.rebuild(leaves), digest, entries, spec)


def _distance(old: jax.Array, new: jax.Array) -> jax.Array:
    if is_trainable(old):
        apart = jnp.abs(new.astype(jnp.float32) - old.astype(jnp.float32)).reshape(-1)
        return jnp.where(jnp.isnan(apart), jnp.inf, apart)
    return (to_bits(new) != to_bits(old)).astype(jnp.float32).reshape(-1)


def _place(spec: layout.TreeSpec, root: str, name: str) -> int:
    return [leaf.name for leaf in spec.leaves].index(layout.join(root, name))


def _by_name(flat: Sorted) -> dict[str, Any]:
    return dict(zip(flat.names, flat.leaves, strict=True))
