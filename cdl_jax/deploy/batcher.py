"""Requests that wait while the model is busy go through it together."""

import asyncio
import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable

import numpy as np

from cdl_jax.deploy.gate import PredictFn
from cdl_jax.deploy.replica import Replica


class Busy(Exception):
    """More samples wait than the queue takes."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """Outputs for one request, and the version that gave them."""

    version: int
    outputs: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Waiting:
    inputs: np.ndarray
    future: "asyncio.Future[Answer]"


class Batcher:
    """One batch at a time, as large as what waits; an idle model lets nobody wait.

    Batches are padded to a power of two, so that few programs are compiled. All of a batch is
    answered by one version, which the batch leases.

    Args:
      replica: gives the versions.
      predict_fn: `(params, model_state, inputs) -> outputs`, both with one row a sample.
      max_batch: samples at most, in a batch and so in a request.
      max_waiting: samples that may wait before `Busy` is raised.
      on_batch: told the version and samples of each batch.
    """

    def __init__(
        self,
        replica: Replica,
        predict_fn: PredictFn,
        *,
        max_batch: int = 32,
        max_waiting: int = 4096,
        on_batch: Callable[[int, int], None] = lambda version, samples: None,
    ):
        self._replica, self._predict, self._on_batch = replica, predict_fn, on_batch
        self.max_batch, self._max_waiting = max_batch, max_waiting
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._samples = 0
        self._draining: asyncio.Task[None] | None = None
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "predict")

    def warm_up(self, sample: np.ndarray) -> None:
        """Compiles every size of batch; sample: one input, without the leading axis."""
        size = 1
        while size < 2 * self.max_batch:
            self._run(np.stack([sample] * min(size, self.max_batch)))
            size *= 2

    async def ask(self, inputs: np.ndarray) -> Answer:
        """Outputs for inputs [N, ...], 1 to max_batch of them, all from one version.

        Raises:
          Busy: when too much waits already.
        """
        if self._samples + len(inputs) > self._max_waiting:
            raise Busy
        loop = asyncio.get_running_loop()
        waiting = _Waiting(inputs, loop.create_future())
        self._queue.append(waiting)
        self._samples += len(inputs)
        if self._draining is None:
            self._draining = loop.create_task(self._drain())
        return await waiting.future

    def close(self) -> None:
        """Ends the worker."""
        self._worker.shutdown(cancel_futures=True)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                batch = self._take()
                inputs = np.concatenate([w.inputs for w in batch])
                try:
                    answer = await loop.run_in_executor(self._worker, self._run, inputs)
                except Exception as error:
                    _fail(batch, error)
                else:
                    _deliver(batch, answer)
        finally:
            self._draining = None

    def _take(self) -> list[_Waiting]:
        batch, size = [], 0
        while self._queue and size + len(self._queue[0].inputs) <= self.max_batch:
            batch.append(self._queue.popleft())
            size += len(batch[-1].inputs)
        self._samples -= size
        return batch

    def _run(self, inputs: np.ndarray) -> Answer:
        room = 1 << (len(inputs) - 1).bit_length()
        padded = np.zeros((min(room, self.max_batch), *inputs.shape[1:]), inputs.dtype)
        padded[: len(inputs)] = inputs
        with self._replica.lease() as lease:
            out = lease.predict(self._predict, padded)
            answer = Answer(lease.version, np.array(out)[: len(inputs)])
        self._on_batch(answer.version, len(inputs))
        return answer


def _deliver(batch: list[_Waiting], answer: Answer) -> None:
    start = 0
    for waiting in batch:
        stop = start + len(waiting.inputs)
        if not waiting.future.done():
            waiting.future.set_result(Answer(answer.version, answer.outputs[start:stop]))
        start = stop


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)
