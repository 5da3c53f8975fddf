"""Selection of the entries that are sent: one interface, and the XLA form of it.

A selector takes updates of any shape and residuals, rows of as many entries, adds them once
(`acc`), and gives back

  indices    rows, per section int32[k], ascending, unique
  sent       rows, per section acc's bits at the indices
  residuals  rows, per tensor acc with +0.0 at the selected entries

so that sent and residuals partition acc by bits. Indices count in C order. Exactly k entries are
selected, ties go to the lowest index, and the result is the same from every implementation.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cdl_jax.core import threshold
from cdl_jax.core.joined import join
from cdl_jax.core.layout import ends
from cdl_jax.core.ragged import Ragged
from cdl_jax.core.tree import is_trainable, to_bits
from cdl_jax.native import available

WORTH_A_THRESHOLD = 1 << 16  # entries; below it a GPU sorts them as fast

Arrays = tuple[jax.Array, ...]
Selected = tuple[Ragged, Ragged, Ragged]


def error_feedback_top_k(
    updates: Sequence[jax.Array],
    residuals: Sequence[jax.Array],
    ks: tuple[int, ...],
    *,
    global_scope: bool,
) -> Selected:
    """Adds, selects the k largest magnitudes, and splits acc into sent and residual.

    Args:
      updates: float arrays, of one dtype.
      residuals: rows of the same sizes and dtype.
      ks: entries to select per tensor; a single one in global scope.
      global_scope: select over the concatenation.

    Returns:
      `(indices, sent, residuals)` as the module says. On a CPU float32 goes through the fused
      kernel of `cdl_jax.native` where that was built.
    """

    def in_xla(updates: Arrays, residuals: Ragged) -> Selected:
        return xla_top_k(updates, residuals, ks, global_scope=global_scope)

    def in_native(updates: Arrays, residuals: Ragged) -> Selected:
        from cdl_jax.native import select as native

        return native.error_feedback_top_k(updates, residuals, ks, global_scope=global_scope)

    operands = tuple(updates), join(residuals)
    if all(u.dtype == jnp.float32 for u in updates) and available():
        return jax.lax.platform_dependent(*operands, cpu=in_native, default=in_xla)
    return in_xla(*operands)


def most_changed(
    olds: Sequence[jax.Array], news: Sequence[jax.Array], ks: tuple[int, ...]
) -> Ragged:
    """Positions of the k entries that differ most from the old rows, a row int32[k] a tensor.

    Floats are compared as float32: equal bits are no distance, a difference that is NaN is the
    largest. Other entries are all as far away that have other bits. Ascending; ties go to the
    lowest index.
    """

    def in_xla(olds: Ragged, news: Arrays) -> Ragged:
        apart = [_distance(old, new.reshape(-1)) for old, new in zip(olds, news, strict=True)]
        return join(_largest(jax.lax.optimization_barrier(apart), ks))

    def in_native(olds: Ragged, news: Arrays) -> Ragged:
        from cdl_jax.native import select as native

        return native.most_changed(olds, news, ks)

    if any(new.dtype != jnp.float32 for new in news):
        pairs = [_as_floats(old, new.reshape(-1)) for old, new in zip(olds, news, strict=True)]
        olds, news = zip(*pairs, strict=True)
    operands = join(olds), tuple(news)
    if available():
        return jax.lax.platform_dependent(*operands, cpu=in_native, default=in_xla)
    return in_xla(*operands)


def _as_floats(old: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array]:
    if is_trainable(old):
        return old.astype(jnp.float32), new.astype(jnp.float32)
    return jnp.zeros(old.shape, jnp.float32), (to_bits(new) != to_bits(old)).astype(jnp.float32)


def _distance(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(to_bits(old) == to_bits(new), 0.0, new - old)


def xla_top_k(
    updates: Sequence[jax.Array],
    residuals: Sequence[jax.Array],
    ks: tuple[int, ...],
    *,
    global_scope: bool,
) -> Selected:
    """`error_feedback_top_k` by XLA's own operations, for any backend and float."""
    accs = _accumulate(updates, residuals)
    pick = _largest(_scoped(accs, global_scope), ks)
    return split(accs, pick, global_scope=global_scope)


def _largest(accs: Sequence[jax.Array], ks: tuple[int, ...]) -> list[jax.Array]:
    """Positions of the k largest of each; tensors of one size and k are sorted as one batch."""
    alike: dict[tuple[int, int], list[int]] = {}
    for t, (acc, k) in enumerate(zip(accs, ks, strict=True)):
        alike.setdefault((acc.size, k), []).append(t)
    pick: dict[int, jax.Array] = {}
    for (n, k), places in alike.items():
        if n >= WORTH_A_THRESHOLD and accs[places[0]].dtype.itemsize < 8:
            pick |= {t: _large(accs[t], k) for t in places}
        else:
            rows = _sorted_top_k(jnp.stack([accs[t] for t in places]), k)
            pick |= {t: rows[i] for i, t in enumerate(places)}
    return [pick[t] for t in range(len(accs))]


def _large(acc: jax.Array, k: int) -> jax.Array:
    # XLA's CPU selects without a sort already.
    return jax.lax.platform_dependent(
        acc,
        cpu=lambda x: _sorted_top_k(x, k),
        default=lambda x: threshold.top_k_positions(x, k),
    )


def _sorted_top_k(x: jax.Array, k: int) -> jax.Array:
    # One NaN for all: top_k orders them by their bits.
    magnitudes = jnp.where(jnp.isnan(x), jnp.nan, jnp.abs(x)).astype(x.dtype)
    return jnp.sort(jax.lax.top_k(magnitudes, k)[1].astype(jnp.int32), axis=-1)


def error_feedback_random_k(
    updates: Sequence[jax.Array],
    residuals: Sequence[jax.Array],
    ks: tuple[int, ...],
    *,
    global_scope: bool,
    key: jax.Array,
) -> Selected:
    """As `error_feedback_top_k`, with k positions drawn uniformly without replacement."""
    accs = _accumulate(updates, residuals)
    pick = [
        random_positions(jax.random.fold_in(key, t), acc.size, k)
        for t, (acc, k) in enumerate(zip(_scoped(accs, global_scope), ks, strict=True))
    ]
    return split(accs, pick, global_scope=global_scope)


def random_positions(key: jax.Array, n: int, k: int) -> jax.Array:
    """Distinct positions below n, k >= 1 of them, uniform over all k-subsets; int32[k], ascending.

    Draws in O(k) expected where k is at most n/2: the first k distinct values of a sequence of
    independent draws are a uniform subset, and a sequence that is too short is drawn again.
    """
    if 2 * k > n:
        return jnp.sort(jax.random.permutation(key, n)[:k].astype(jnp.int32))
    draws = 2 * k + 16

    def first_distinct(attempt: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = jax.random.randint(jax.random.fold_in(key, attempt), (draws,), 0, n, jnp.int32)
        order = jnp.argsort(values, stable=True)
        ascending = values[order]
        repeated = jnp.concatenate([jnp.zeros(1, bool), ascending[1:] == ascending[:-1]])
        turn = jnp.sort(jnp.where(repeated, draws, order))[:k]
        return values.at[turn].get(mode="fill", fill_value=n), turn[-1] < draws

    def again(carry: tuple[jax.Array, jax.Array, jax.Array]):
        attempt = carry[0] + 1
        return (attempt, *first_distinct(attempt))

    start = (jnp.zeros((), jnp.int32), *first_distinct(jnp.zeros((), jnp.int32)))
    return jnp.sort(jax.lax.while_loop(lambda c: ~c[2], again, start)[1])


def split(
    accs: Sequence[jax.Array],
    pick: Sequence[jax.Array],
    *,
    global_scope: bool,
) -> Selected:
    """Splits flat accs at the picked positions into what is sent and what is kept."""
    offsets = ends([acc.size for acc in accs])
    sent = [acc[at] for acc, at in zip(_scoped(accs, global_scope), pick, strict=True)]
    kept = []
    for t, acc in enumerate(accs):
        own = pick[0] - int(offsets[t]) if global_scope else pick[t]
        own = jnp.where((own >= 0) & (own < acc.size), own, acc.size)
        kept.append(acc.at[own].set(0, mode="drop"))
    return join(pick), join(sent), join(kept)


def _scoped(accs: Sequence[jax.Array], global_scope: bool) -> Sequence[jax.Array]:
    return [jnp.concatenate(list(accs))] if global_scope else accs


def _accumulate(
    updates: Sequence[jax.Array], residuals: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    # The barrier keeps acc one value: recomputed inside two fusions, of which one contracts a
    # scale and this add into an FMA, sent and residual would come from different roundings.
    accs = tuple(u.reshape(-1) + r for u, r in zip(updates, residuals, strict=True))
    return jax.lax.optimization_barrier(accs)
