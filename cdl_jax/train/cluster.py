"""More than one device and more than one process: where a step runs, and what all agree on.

Parameters and optimizer state are replicated over a mesh of all devices, batches are sharded over
it by samples; XLA adds the all-reduce of the gradients. Every process takes the same batches: its
selection is a function of the settings and of the triggers, and these the first process tells the
others. It alone has the run folder and writes the log.
"""

import contextlib
import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cdl_jax.errors import ConfigError, TrainingError
from cdl_jax.train.arrival import Trigger
from cdl_jax.train.link import Link
from cdl_jax.train.rendezvous import is_loopback

AXIS = "batch"
_SECONDS_TO_MEET = 120
_SECONDS_TO_MISS = 60  # before JAX aborts all processes for one of them; `Link` is to be quicker
_TRIGGER = struct.Struct("<?qqdd")  # whether there is one, then a `Trigger`


class Cluster:
    """The devices and processes of a run; one of each unless told otherwise.

    Args:
      devices: of each process, 0 for all that it has.
      link: to the other processes, where there are any.

    Attributes:
      leads: whether this is the process that reads the clock, keeps the records and writes.
      processes, devices: of the whole run.
      replicated: the sharding of what every device holds; None on a single device.

    Raises:
      ConfigError: when the process has fewer devices.
    """

    def __init__(self, devices: int = 1, link: Link | None = None):
        self._link = link
        self.leads, self.processes = jax.process_index() == 0, jax.process_count()
        chosen = _first_of_each(devices)
        self.devices = len(chosen)
        self._mesh, self.replicated, self._sharded = None, None, None
        if self.devices > 1:
            self._mesh = jax.make_mesh(
                (self.devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen
            )
            self.replicated = NamedSharding(self._mesh, PartitionSpec())
            self._sharded = NamedSharding(self._mesh, PartitionSpec(AXIS))

    @classmethod
    def join(cls, coordinator: str | None, processes: int, process_id: int, devices: int):
        """Meets the other processes of the run at the first one's address, if there are others.

        Raises:
          TrainingError: when they do not meet.
          ConfigError: when there are fewer devices.
        """
        if coordinator is None or jax.distributed.is_initialized():
            return cls(devices)
        link = Link.meet(coordinator, processes, process_id, _SECONDS_TO_MEET)
        with link.until_work():
            _initialize(coordinator, processes, process_id)
            return cls(devices, link)

    def together(self) -> contextlib.AbstractContextManager[Any]:
        """The work of all processes, which ends when one is gone; see `Link.together`."""
        return contextlib.nullcontext() if self._link is None else self._link.together()

    def check_shares(self, name: str, samples: int) -> None:
        """Whether the devices can share out batches of so many samples.

        Raises:
          ConfigError: when some would have more than others.
        """
        if samples % self.devices:
            fits = samples - samples % self.devices
            mend = f"{fits} or {fits + self.devices}" if fits else self.devices
            raise ConfigError(
                f"{name} is {samples}, which {self.devices} devices cannot share out evenly; give "
                f"{mend}, or other --devices"
            )

    def facts(self) -> dict[str, int]:
        """What the bits depend on, in JSON's types."""
        return {"devices": self.devices, "processes": self.processes}

    def over(self) -> contextlib.AbstractContextManager[Any]:
        """The mesh as JAX's current one, for what runs on all devices."""
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def put(self, batch: Any) -> Any:
        """A batch, the same on every process, as the steps take it.

        It is sharded by samples. Where their number is no multiple of the devices', as an epoch's
        last batch may be, it is replicated.
        """
        if self._mesh is None:
            return batch  # a program takes NumPy's arrays in less time than a device_put each
        rows = len(jax.tree.leaves(batch)[0])
        return _place(batch, self.replicated if rows % self.devices else self._sharded)

    def replicate(self, tree: Any) -> Any:
        """A tree, the same on every process, on every device."""
        return tree if self._mesh is None else _place(tree, self.replicated)

    def local(self, tree: Any) -> Any:
        """A replicated tree as one device of this process holds it."""
        if self._mesh is None:
            return tree
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def led(self, triggers: Iterable[Trigger]) -> Iterator[Trigger]:
        """The first process's triggers, on every process."""
        if self.processes == 1:
            yield from triggers
            return
        own = iter(triggers)
        while True:
            mine = next(own, None) if self.leads else None
            words = _TRIGGER.pack(mine is not None, *(mine or (0, 0, 0.0, 0.0)))
            more, *trigger = _TRIGGER.unpack(self._broadcast(words))
            if not more:
                return
            yield Trigger(*trigger)

    def share(self, content: bytes) -> bytes:
        """The first process's bytes, on every process."""
        if self.processes == 1:
            return content
        size = struct.unpack("<q", self._broadcast(struct.pack("<q", len(content))))[0]
        return self._broadcast(content if self.leads else bytes(size))

    def check_same(self, facts: dict[str, Any]) -> None:
        """Whether all processes were started alike.

        Raises:
          ConfigError: on all of them, when one has other facts; it names them.
        """
        theirs = json.loads(self.share(json.dumps(facts).encode()))
        mine = json.loads(json.dumps(facts))
        odd = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
        others = np.flatnonzero(self._gather(np.array([bool(odd)], np.int32)))
        if others.size:
            what = f": {', '.join(odd)} differ here" if odd else ""
            raise ConfigError(
                f"process {others[0]} is not like process 0{what}; start every process with the "
                "same program, data and settings but --process-id"
            )

    def check_digest(self, version: int, words: np.ndarray) -> None:
        """Whether every process holds the same model.

        Raises:
          TrainingError: on all of them, names the first one that differs.
        """
        rows = self._gather(np.asarray(words, np.uint32)).reshape(-1, 4)
        odd = np.flatnonzero((rows != rows[0]).any(1))
        if odd.size:
            raise TrainingError(
                f"process {odd[0]} holds another model than process 0 at version {version}; start "
                "again from the newest checkpoint, on machines of one kind"
            )

    def _gather(self, values: np.ndarray) -> np.ndarray:
        if self.processes == 1:
            return values
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(values))

    def _broadcast(self, content: bytes) -> bytes:
        from jax.experimental import multihost_utils

        words: Any = multihost_utils.broadcast_one_to_all(np.frombuffer(content, np.uint8))
        return np.asarray(words).astype(np.uint8).tobytes()


def _initialize(coordinator: str, processes: int, process_id: int) -> None:
    # It would take SIGTERM, which ends a run between two versions, to itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, processes, process_id, initialization_timeout=_SECONDS_TO_MEET,
            heartbeat_timeout_seconds=_SECONDS_TO_MISS,
            shutdown_timeout_seconds=_SECONDS_TO_MISS,
            coordinator_bind_address=coordinator if is_loopback(coordinator) else None,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"process {process_id} of {processes} met the others at {coordinator}, but JAX did "
            f"not: {first}; start all processes again, at another port where it was taken"
        ) from error


def _first_of_each(count: int) -> list[Any]:
    mine = jax.local_devices()
    if count > len(mine):
        more = "; JAX_NUM_CPU_DEVICES makes more" if mine[0].platform == "cpu" else ""
        raise ConfigError(f"devices is {count}, but this process has {len(mine)}{more}")
    ranks: dict[int, int] = {}
    chosen = []
    for device in jax.devices():
        rank = ranks[device.process_index] = ranks.get(device.process_index, -1) + 1
        if rank < (count or len(mine)):
            chosen.append(device)
    return chosen


def _place(tree: Any, sharding: Any) -> Any:
    """Host values or local arrays as global ones; every process gives the same."""

    def place(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            words = place(jax.random.key_data(x))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)
