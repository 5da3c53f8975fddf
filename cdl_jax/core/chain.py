"""What reaches the end of an optax chain, read off its jaxpr at trace time.

The step writes only what the sparsifier selected. A chain that changes the update afterwards
(weight decay behind the sparsifier, a leaf that `optax.masked` lets pass) would train one model
and say another, so such leaves are found here, by name, before anything runs.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

from cdl_jax.core.sparsify import MARK, ErrorFeedbackState
from cdl_jax.core.tree import flatten

Origin = Literal["sparse", "still", "dense"]
_SAME = ("copy", "reshape", "convert_element_type", "optimization_barrier", "squeeze")
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")


class Chain(NamedTuple):
    """What is known of a chain's outputs at trace time.

    Attributes:
      origins: where each leaf of the final updates comes from, by path. "sparse" is the
        sparsifier's own output, perhaps gated by a bool as `optax.MultiSteps` does; "still" a
        constant zero (`optax.set_to_zero`); anything else is "dense".
      always: whether the sparsifier sends in every step; `optax.MultiSteps` is silent in some.
    """

    origins: dict[str, Origin]
    always: bool


def look(tx: optax.GradientTransformation, params: Any, opt_state: Any) -> Chain:
    """Traces a chain with one sparsifier."""

    def outputs(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return updates, sparsifier_state(state).count

    jaxpr = jax.make_jaxpr(outputs)(params, opt_state, params).jaxpr
    *updates, count = jaxpr.outvars
    names, order = flatten(params).names, flatten(params).structure.order
    outs = [updates[i] for i in order]
    rows = zip(names, outs, strict=True)
    origins: dict[str, Origin] = {name: _origin(jaxpr, var) for name, var in rows}
    return Chain(origins, _one_less(jaxpr, count) is not None)


def sparsifier_state(opt_state: Any) -> ErrorFeedbackState:
    """The one sparsifier's state inside an optimizer state.

    Raises:
      ValueError: when there is none, or more than one.
    """
    found = sparsifier_states(opt_state)
    if len(found) != 1:
        raise ValueError(
            f"the optax chain has {len(found)} sparsifiers; a sparse step needs exactly one, last "
            "in the chain: optax.chain(optax.amsgrad(1e-3), cdl_jax.sparsify_top_k(1e-3)), or "
            "make_step(..., update='dense') for none and update='changed' for one before the "
            "optimizer"
        )
    return found[0]


def sparsifier_states(opt_state: Any) -> list[ErrorFeedbackState]:
    """All sparsifiers' states inside an optimizer state."""
    leaves = jax.tree.leaves(opt_state, is_leaf=is_sparsifier)
    return [x for x in leaves if is_sparsifier(x)]


def is_sparsifier(node: Any) -> bool:
    """Whether a node of an optimizer state is a sparsifier's."""
    return isinstance(node, ErrorFeedbackState)


def without_selection(opt_state: Any) -> Any:
    """An optimizer state whose sparsifiers forgot what they selected: what a step carries over.

    Hundreds of small arrays of a large model, each of which costs the host its hand-over.
    """

    def forget(node: Any) -> Any:
        empty = {"indices": (), "values": (), "scales": ()}
        return node._replace(**empty) if is_sparsifier(node) else node

    return jax.tree.map(forget, opt_state, is_leaf=is_sparsifier)


def with_room(opt_state: Any, like: Any) -> Any:
    """Inverse of `without_selection` but for what was selected: nothing that may be sent.

    Args:
      opt_state: a state.
      like: what `tx.init` gives, or its shapes.
    """

    def fill(node: Any, shapes: Any) -> Any:
        if not is_sparsifier(node):
            return node
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes.scales)
        return node._replace(indices=zeros.indices, values=zeros.values, scales=ones)

    return jax.tree.map(fill, opt_state, like, is_leaf=is_sparsifier)


def _origin(jaxpr: Any, var: Any) -> Origin:
    if isinstance(var, core.Literal):
        return "still" if not np.any(var.val) else "dense"
    producer = _producers(jaxpr).get(var)
    return _eqn_origin(jaxpr, producer, var) if producer is not None else "dense"


def _one_less(jaxpr: Any, var: Any) -> Any:
    """The input of which a variable is the successor; None where it is something else."""
    eqn = None if isinstance(var, core.Literal) else _producers(jaxpr).get(var)
    if eqn is None:
        return None
    source = None
    if eqn.primitive.name in _CALLS:
        inner = (eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")).jaxpr
        found = _one_less(inner, inner.outvars[eqn.outvars.index(var)])
        source = None if found is None else eqn.invars[inner.invars.index(found)]
    elif eqn.primitive.name == "add":
        ones = [isinstance(x, core.Literal) and bool(np.all(x.val == 1)) for x in eqn.invars]
        source = next((x for x, one in zip(eqn.invars, ones[::-1], strict=True) if one), None)
    is_input = source is not None and not isinstance(source, core.Literal)
    return source if is_input and source in jaxpr.invars else None


@functools.lru_cache(maxsize=32)
def _producers(jaxpr: Any) -> dict[Any, Any]:
    """The equation of each variable; kept, since one search goes through a jaxpr leaf by leaf."""
    return {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}


def _eqn_origin(jaxpr: Any, eqn: Any, var: Any) -> Origin:
    name = eqn.primitive.name
    if name == "name" and eqn.params["name"] == MARK:
        return "sparse"
    if name in _SAME or name == "name":
        return _origin(jaxpr, eqn.invars[eqn.outvars.index(var)])
    if name in ("broadcast_in_dim", "full_like"):
        return "still" if _origin(jaxpr, eqn.invars[0]) == "still" else "dense"
    if name == "mul":
        return _gated(jaxpr, eqn.invars)
    return _inner_origin(eqn, eqn.outvars.index(var))


def _gated(jaxpr: Any, factors: Sequence[Any]) -> Origin:
    for factor, other in (factors, factors[::-1]):
        if _is_gate(jaxpr, factor):
            return _origin(jaxpr, other)
    return "dense"


def _is_gate(jaxpr: Any, var: Any) -> bool:
    """Whether a value is one bool read as a number; a mask of them is no gate."""
    eqn = None if isinstance(var, core.Literal) else _producers(jaxpr).get(var)
    if eqn is None:
        return False
    if eqn.primitive.name == "broadcast_in_dim":
        return _is_gate(jaxpr, eqn.invars[0])
    source = eqn.invars[0].aval
    is_cast = eqn.primitive.name == "convert_element_type"
    return is_cast and source.dtype == np.bool_ and source.shape == ()


def _inner_origin(eqn: Any, place: int) -> Origin:
    """Through a call, or through every branch of a condition."""
    inner = eqn.params.get("branches") if eqn.primitive.name == "cond" else None
    if inner is None and eqn.primitive.name in _CALLS:
        inner = [eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")]
    if inner is None:
        return "dense"
    kinds = {_origin(c.jaxpr, c.jaxpr.outvars[place]) for c in inner}
    return next(kind for kind in ("dense", "sparse", "still") if kind in kinds)
