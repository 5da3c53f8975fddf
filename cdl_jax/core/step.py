"""The proactive train step: one pure function of (state, batch)."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cdl_jax.core import chain, held, ship
from cdl_jax.core.joined import JoinedLeaves, join_leaves
from cdl_jax.core.layout import SparseUpdate
from cdl_jax.core.tree import flatten, is_trainable, tree_spec
from cdl_jax.core.update import digest_words
from cdl_jax.native import available, finite

LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, tuple[Any, Any]]]
Update = Literal["sparse", "dense", "changed"]


class TrainState(NamedTuple):
    """Everything that a step reads and writes; a pytree of arrays."""

    params: Any  # as the replicas hold them, at every version
    model_state: Any  # as the loss function left it
    served_state: JoinedLeaves  # the model state that the replicas hold
    opt_state: Any  # without what the sparsifier selected: the update has it
    key: jax.Array  # PRNG key []; the step's own is fold_in(key, step)
    step: jax.Array  # int32 [], steps taken, skipped ones included
    version: jax.Array  # uint32 [], of the deployed tree
    digest: jax.Array  # uint32 [4], running digest of the deployed tree
    skipped_in_a_row: jax.Array  # int32 []


class StepInfo(NamedTuple):
    """What a step tells and does not carry over."""

    loss: jax.Array  # float [], before the step
    metrics: Any  # the loss function's own
    skipped: jax.Array  # bool [], loss or gradient was not finite, nothing was changed
    update: SparseUpdate


def init_state(
    params: Any,
    tx: optax.GradientTransformation,
    *,
    model_state: Any = None,
    key: jax.Array | None = None,
    version: int = 0,
) -> TrainState:
    """The state of a model that is deployed as it stands, at `version`.

    Args:
      params: pytree of arrays. Floating leaves are trained; integer leaves and `None` are not.
      tx: the optax chain; a step traces its `init`, too.
      model_state: pytree of arrays that the loss function renews (BatchNorm statistics), or None.
      key: PRNG key of the run, `jax.random.key(0)` by default.
      version: the deployed tree's version, 0 to 2^32 - 1.

    Returns:
      A state of its own: every array is copied, so a step that donates it leaves yours alive.

    Raises:
      ValueError: when a leaf has a dtype that cannot be deployed; names the leaf.
    """
    params, model_state = _copy(params), _copy({} if model_state is None else model_state)
    return TrainState(
        params=params,
        model_state=model_state,
        served_state=_copy(join_leaves(model_state)),
        opt_state=_copy(chain.without_selection(tx.init(_trainable(params)))),
        key=jnp.copy(jax.random.key(0) if key is None else key),
        step=jnp.zeros((), jnp.int32),
        version=jnp.asarray(version, jnp.uint32),
        digest=jax.jit(digest_words)({"model_state": model_state, "params": params}),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def deployed(state: TrainState) -> dict[str, Any]:
    """The tree as the replicas hold it: `{"model_state": ..., "params": ...}`.

    The parameters are the state's own arrays, which a step that donates it takes; the model
    state's are new ones.
    """
    flat = flatten(state.model_state)  # of the same containers
    served = held.unjoined(state.served_state)
    return {"model_state": flat.rebuild(served), "params": state.params}


def held_by(state: TrainState) -> held.Held:
    """The same as a step carries it."""
    return held.Held(state.params, state.served_state)


def proactive_step(
    state: TrainState,
    history: Any,
    stream: Any,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    update: Update = "sparse",
    uncovered: Literal["refuse", "ship"] = "refuse",
    model_state_density: float | None = None,
) -> tuple[TrainState, StepInfo]:
    """One optimizer step on history ++ stream, and the update that brings replicas along.

    Pure and not jitted, for `jit`, `scan`, `vmap` over seeds, and meshes. Bits are promised per
    compiled program: feed a log from one compiled form (`make_step`).

    Args:
      state: from `init_state` or an earlier step.
      history: batch sampled from the past, pytree with leading axis = samples; None for none.
      stream: batch of new samples, of the same structure; None for none.
      loss_fn: `(params, model_state, batch, key) -> (loss, (model_state, metrics))`.
      tx: the optax chain that `state` was made with.
      update: "sparse" ships what the chain's one sparsifier selected; "changed" every entry
        whose bits changed, "dense" whole leaves, both for any chain.
      uncovered: a leaf that the chain changes behind or beside the sparsifier is refused by
        name, or shipped whole.
      model_state_density: share of each model-state tensor sent in a sparse update, at least
        one entry; the entries that moved most against what the replicas hold. By default the
        share of parameters that the sparsifier sends.

    Returns:
      `(state, info)`. Where the loss or a gradient is not finite, params, model state,
      optimizer state and residual keep their bits, and the update is empty.

    Raises:
      ValueError: at trace time, for a chain without exactly one sparsifier, a leaf changed
        outside it, two empty batches, batches of different structure, or a loss function whose
        model state changes its paths, shapes or dtypes.

    References:
      Prapas et al., Continuous Training and Deployment of Deep Learning Models, 2021,
      sections 3 and 4.
    """
    batch = _concatenate(history, stream)
    state = state._replace(opt_state=chain.without_selection(state.opt_state))
    trained = _trainable(state.params)
    (loss, (model_state, metrics)), grads = jax.value_and_grad(
        lambda p: loss_fn(_merge(p, state.params), state.model_state, batch, _step_key(state)),
        has_aux=True,
    )(trained)
    model_state = _like(state.model_state, model_state)
    accept = _all_finite(loss, grads)
    options = {"update": update, "uncovered": uncovered, "model_state_density": model_state_density}
    moved, change = _take_or_keep(accept, state, grads, model_state, tx, options)
    new_state = moved._replace(
        step=state.step + 1,
        version=change.version,
        digest=change.digest,
        skipped_in_a_row=jnp.where(accept, 0, state.skipped_in_a_row + 1),
    )
    return new_state, StepInfo(loss, metrics, ~accept, change)


def _take_or_keep(
    accept: jax.Array, state: TrainState, grads: Any, model_state: Any, tx: Any, options: Any
) -> tuple[TrainState, SparseUpdate]:
    """The optimizer's step and the update that says it, or the state as it was and an empty one.

    All of it lies inside one condition: chosen entry by entry, the new and the old optimizer
    state would both be alive, and XLA would copy every one of its arrays.
    """

    @jax.jit  # traced once, for its form and for the condition
    def take(state: TrainState, grads: Any, model_state: Any) -> tuple[TrainState, SparseUpdate]:
        params = _trainable(state.params)
        before = chain.with_room(state.opt_state, jax.eval_shape(tx.init, params))
        updates, opt_state = tx.update(grads, before, params)
        proposal = ship.Proposal(updates, before, opt_state, model_state)
        shipped, change = ship.ship(
            held_by(state), state.digest, state.version, proposal, tx, **options
        )
        moved = state._replace(
            params=shipped.params,
            model_state=model_state,
            served_state=shipped.model_state,
            opt_state=chain.without_selection(opt_state),
        )
        return moved, change

    like = jax.eval_shape(take, state, grads, model_state)[1]

    def keep(state: TrainState, *_: Any) -> tuple[TrainState, SparseUpdate]:
        return state, ship.nothing(like, state.digest, state.version)

    return jax.lax.cond(accept, take, keep, state, grads, model_state)


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    sharding: jax.sharding.Sharding | None = None,
    **options: Any,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, StepInfo]]:
    """`proactive_step` compiled: `step(state, history, stream) -> (state, info)`.

    It compiles once for each shape of the batches and donates the state: keep using the one it
    returns. Options are `proactive_step`'s keyword arguments.

    Over a mesh, `sharding` is `NamedSharding(mesh, PartitionSpec())`, and the state and all that
    is returned are replicated so; a batch comes sharded by samples. Axes of the mesh are Auto.

    Examples:
      >>> def loss_fn(params, model_state, batch, key):
      ...     return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), (model_state, {})
      >>> from cdl_jax.core.sparsify import sparsify_top_k
      >>> tx = optax.chain(optax.sgd(1e-2), sparsify_top_k(density=0.25))
      >>> state = init_state({"w": jnp.zeros(8)}, tx)
      >>> step = make_step(loss_fn, tx)
      >>> state, info = step(state, None, {"x": jnp.ones((4, 8)), "y": jnp.ones(4)})
      >>> int(jnp.sum(state.params["w"] != 0)), info.update.indices[0].tolist()
      (2, [0, 1])
    """

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def step(state: TrainState, history: Any, stream: Any) -> tuple[TrainState, StepInfo]:
        return proactive_step(state, history, stream, loss_fn, tx, **options)

    return step


def _copy(tree: Any) -> Any:
    # With a dtype of their own: a weak one would turn strong in the first step, and recompile.
    return jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x), copy=True), tree)


def _step_key(state: TrainState) -> jax.Array:
    return jax.random.fold_in(state.key, state.step)


def _trainable(params: Any) -> Any:
    return jax.tree.map(lambda x: x if is_trainable(x) else None, params)


def _merge(trained: Any, params: Any) -> Any:
    """`params` with its floating leaves taken from `trained`."""
    return jax.tree.map(lambda x, t: x if t is None else t, params, trained)


def _like(old: Any, new: Any) -> Any:
    """The new model state, which must look like the old one; None stands for none."""
    new = {} if new is None else new
    odd = set(tree_spec(new).leaves) ^ set(tree_spec(old).leaves)
    if odd or jax.tree.structure(new) != jax.tree.structure(old):
        raise ValueError(
            "loss_fn returned a model state unlike the one it was given: it differs in "
            f"{sorted(odd, key=str) or 'its containers'}; keep paths, shapes, dtypes and containers"
        )
    return new


def _concatenate(history: Any, stream: Any) -> Any:
    if history is None and stream is None:
        raise ValueError("history and stream are both None; a step needs at least one batch")
    if history is None or stream is None:
        return stream if history is None else history
    if jax.tree.structure(history) != jax.tree.structure(stream):
        raise ValueError(
            f"history is {jax.tree.structure(history)}, stream is {jax.tree.structure(stream)}; "
            "give batches of one structure"
        )
    return jax.tree.map(lambda h, s: jnp.concatenate([h, s]), history, stream)


def _all_finite(loss: jax.Array, grads: Any) -> jax.Array:
    """Whether the loss and every gradient is finite; one pass over the gradients."""

    def in_xla(leaves: list[jax.Array]) -> jax.Array:
        checks = [jnp.all(jnp.isfinite(g)) for g in leaves]
        return functools.reduce(jnp.logical_and, checks, jnp.asarray(True))

    leaves = jax.tree.leaves(grads)
    if not available():
        return jnp.isfinite(loss) & in_xla(leaves)
    return jnp.isfinite(loss) & jax.lax.platform_dependent(
        leaves, cpu=finite.all_finite, default=in_xla
    )
