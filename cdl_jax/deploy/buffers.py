"""Two whole models of which one is served while the other takes what comes next."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from cdl_jax.core.layout import SparseUpdate, TreeSpec
from cdl_jax.deploy.gate import PredictFn
from cdl_jax.wire import Snapshot

_MOST_MISSED = 64  # updates after which copying the other model is likely cheaper


class Model(Protocol):
    """One buffer of a replica, in NumPy or JAX."""

    spec: TreeSpec

    def prepare(self, layout: list[Any]) -> None:
        """Gets ready for updates of a layout (`Manifest.layout`)."""
        ...

    def tree(self) -> Any:
        """The deployed tree."""
        ...

    def predict(self, predict_fn: PredictFn, inputs: Any) -> Any:
        """Outputs of the tree, `predict_fn(params, model_state, inputs)`.

        A jitted function may be part of a larger program, whose sums differ in the last bits.
        """
        ...

    def tensors(self) -> dict[str, Any]:
        """Its arrays by canonical path."""
        ...

    def load(self, tensors: dict[str, Any]) -> None:
        """Takes over the content of tensors of the same spec."""
        ...

    def plan(self, update: SparseUpdate) -> Any:
        """A checked update, ready to be written into any model of its spec."""
        ...

    def write(self, plans: Sequence[Any], digest: np.ndarray) -> np.ndarray:
        """Writes plans in order; the digest after the last one, given the one before it."""
        ...

    def full_digest(self) -> np.ndarray:
        """The digest over every entry."""
        ...


class DigestMismatch(Exception):
    """An update led to another digest than its own: `found`, uint32[4]."""

    def __init__(self, found: np.ndarray):
        super().__init__(found)
        self.found = found


@dataclasses.dataclass
class Buffer:
    """A model, the version it holds (-1 while it is written), its running digest.

    Attributes:
      pending: plans of that version which the model does not hold yet.
    """

    model: Model
    version: int
    digest: np.ndarray  # uint32 [4]
    readers: int = 0
    pending: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Lease:
    """A version that stays as it is for as long as the lease is held."""

    version: int
    digest: np.ndarray  # uint32 [4]
    buffer: Buffer

    @property
    def tree(self) -> Any:
        """The deployed tree."""
        return self._model.tree()

    def predict(self, predict_fn: PredictFn, inputs: Any) -> Any:
        """Outputs of the tree; of a jitted function for less than `tree` takes."""
        return self._model.predict(predict_fn, inputs)

    @property
    def _model(self) -> Model:
        if self.buffer.version != self.version:
            raise RuntimeError(
                f"the lease of version {self.version} has ended, and its memory holds another "
                "one; use a lease inside its context alone"
            )
        return self.buffer.model


class Buffers:
    """The served buffer, and the spare one that is behind it, or ahead while a gate holds it back.

    One thread writes; any number of threads read through `lease`.
    """

    def __init__(self, front: Buffer, spare: Buffer):
        self.front, self._spare = front, spare
        self._free = threading.Condition()
        self._missed: list[Any] | None = []  # plans from one buffer to the other; None: all

    @property
    def tip(self) -> Buffer:
        """The buffer of the newer version: the served one, or a candidate that is not served."""
        return self._spare if self._spare.version > self.front.version else self.front

    @contextlib.contextmanager
    def lease(self) -> Iterator[Buffer]:
        """The served buffer, which is not written until the context ends."""
        with self._free:
            buffer = self.front
            buffer.readers += 1
        try:
            yield buffer
        finally:
            with self._free:
                buffer.readers -= 1
                self._free.notify_all()

    def ready(self) -> Buffer:
        """The spare buffer at the newest version: what comes next is checked and written there.

        What it missed is pending, and written together with that: one call for both.
        """
        self._wait()
        spare, front = self._spare, self.front
        if spare.version < front.version:
            missed, self._missed = self._missed, None
            spare.version = -1
            if missed is None:
                spare.model.load(front.model.tensors())
            spare.version, spare.digest, self._missed = front.version, front.digest, []
            spare.pending = missed or []
        return spare

    def write(self, plan: Any, version: int, digest: np.ndarray) -> Buffer:
        """Writes a plan, made for the `ready` buffer, into it, and returns it.

        A failure on the way leaves it to be copied anew; the served one is whole.

        Raises:
          DigestMismatch: when the plan does not lead to the digest, which is such a failure.
        """
        spare, missed, pending = self._spare, self._missed, self._spare.pending
        spare.version, spare.pending, self._missed = -1, [], None
        found = spare.model.write([*pending, plan], spare.digest)
        if not np.array_equal(found, digest):
            raise DigestMismatch(found)
        spare.version, spare.digest = version, digest
        if missed is not None and len(missed) < _MOST_MISSED:
            self._missed = [*missed, plan]
        return spare

    def load(self, snapshot: Snapshot) -> Buffer:
        """Loads a snapshot into the spare buffer."""
        self._wait()
        self._spare.version, self._spare.pending, self._missed = -1, [], None
        self._spare.model.load(snapshot.tensors)
        self._spare.version, self._spare.digest = snapshot.version, snapshot.digest
        return self._spare

    def swap(self) -> None:
        """Serves the spare buffer from the next lease on."""
        assert not self._spare.pending  # `write` or `load` came before
        with self._free:
            self.front, self._spare = self._spare, self.front
        if self._spare.version > self.front.version:  # else it would pass for a candidate
            self._spare.version, self._missed = -1, None

    def _wait(self) -> None:
        with self._free:
            self._free.wait_for(lambda: self._spare.readers == 0)
