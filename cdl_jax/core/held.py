"""The deployed tree as a step carries it."""

import dataclasses
from typing import Any, NamedTuple

import jax

from cdl_jax.core.joined import JoinedLeaves, Leaves
from cdl_jax.core.ragged import Ragged, Row
from cdl_jax.core.tree import flatten


class Held(NamedTuple):
    """Parameters leaf by leaf, which an optimizer needs so, and a model state in few arrays.

    A compiled step pays for each array that it takes and gives, and the optimizer and the loss
    function have no use for the model state that the replicas hold.
    """

    params: Any
    model_state: JoinedLeaves

    @property
    def leaves(self) -> Leaves:
        """All of the tree's, in its sorted order."""
        state, params = self.model_state.rows, flatten(self.params).leaves
        rows = [Row(len(state.arrays) + i, 0, x.size) for i, x in enumerate(params)]
        return Leaves((*state.arrays, *params), (*state.rows, *rows))

    def with_leaves(self, leaves: Leaves) -> "Held":
        """The same tree with these leaves, which lie as its own do."""
        flat, few = flatten(self.params), len(self.model_state.rows.arrays)
        rows = Ragged(leaves.arrays[:few], self.model_state.rows.rows)
        return Held(
            flat.rebuild(list(leaves.arrays[few:])),
            dataclasses.replace(self.model_state, rows=rows),
        )


@jax.jit
def unjoined(model_state: JoinedLeaves) -> list[jax.Array]:
    """Its leaves, in sorted order."""
    return list(model_state.values())
