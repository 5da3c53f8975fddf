"""The line between a run's processes: they meet on it, and each learns when another is gone.

JAX's own service aborts a process, with a C++ stack and without a word to Python, when another one
does not come or dies. So the processes meet here first, at the port that JAX's service takes after
them, and keep their connections to process 0: a process that dies closes its own at once.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from cdl_jax.errors import CdlError, TrainingError
from cdl_jax.train.rendezvous import gathered, joined, say

# When another process is gone: for its end to show here, for an orderly end of this one (by whether
# it leads: then a checkpoint may be on its way to the disk), and of the others after that.
_SECONDS_TO_SHOW, _SECONDS_TO_END, _SECONDS_TO_LEAVE = 2.0, {True: 40.0, False: 1.0}, 5.0
_AGAIN = "start all processes again; with --run they go on from the newest checkpoint"
# A host that is gone without a word counts as dead after 25 seconds, before JAX's service acts.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def leave(why: str) -> NoReturn:
    """Ends the process at once: at an orderly exit JAX would wait for the others, then abort."""
    os.write(2, f"cdl-jax: {why}\n".encode())
    os._exit(1)


class Link:
    """The open connections of a process: to process 0, or, of that one, to all others.

    Args:
      process_id: of this process.
      peers: connections by process.
      leave: what ends a process that cannot be told by an exception.

    Attributes:
      gone: which process is gone, and what to do; None while all are there.
    """

    def __init__(
        self, process_id: int, peers: dict[int, socket.socket], leave: Callable[[str], Any] = leave
    ):
        self.gone: str | None = None
        self._process_id, self._peers, self._leave = process_id, peers, leave
        self._leads = process_id == 0
        self._lock, self._over, self._is_gone = threading.Lock(), False, threading.Event()
        self._ended = threading.Event()
        self._watchers = [
            threading.Thread(target=self._watch, args=peer, daemon=True) for peer in peers.items()
        ]
        for peer in peers.values():
            _keep_alive(peer)
        for watcher in self._watchers:
            watcher.start()

    @classmethod
    def meet(cls, coordinator: str, processes: int, process_id: int, seconds: float) -> "Link":
        """Waits until all processes are here.

        Raises:
          TrainingError: when one does not come in time, or comes with other settings.
        """
        host, port = coordinator.rsplit(":", 1)
        if process_id == 0:
            return cls(0, gathered(coordinator, int(port), processes, seconds))
        there = joined(coordinator, (host.strip("[]"), int(port)), processes, process_id, seconds)
        return cls(process_id, {0: there})

    @contextlib.contextmanager
    def until_work(self) -> Any:
        """Tells the others why this process does not come to its work; see `together`."""
        try:
            yield
        except BaseException as error:
            self._stopped(error)
            raise

    @contextlib.contextmanager
    def together(self) -> Any:
        """Tells the others how this process's work ends, and it when another one is gone.

        Raises:
          TrainingError: instead of what a collective raises when a process is gone.
        """
        try:
            yield
        except BaseException as error:
            foreign = isinstance(error, Exception) and not isinstance(error, CdlError)
            if foreign and self._is_gone.wait(_SECONDS_TO_SHOW):
                self.end(self.gone)
                raise TrainingError(str(self.gone)) from error
            self._stopped(error)
            raise
        self.end(None)
        self.close(_SECONDS_TO_LEAVE)

    def _stopped(self, error: BaseException) -> None:
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        self.end(f"process {self._process_id} stopped: {first}")

    def end(self, why: str | None) -> None:
        """Says that this process ends: None, as all do. Else waits for the others to leave."""
        with self._lock:
            self._over = True
        self._ended.set()
        for peer in self._peers.values():
            say(peer, {"bye": True} if why is None else {"stop": why})
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
        if why is not None and self._leads:  # JAX aborts who outlives process 0
            self.close(_SECONDS_TO_LEAVE)

    def close(self, seconds: float) -> None:
        """Waits for the others to close their ends, and closes the connections."""
        until = time.monotonic() + seconds
        for watcher in self._watchers:
            watcher.join(max(0.0, until - time.monotonic()))
        for peer in self._peers.values():
            peer.close()

    def _watch(self, process: int, peer: socket.socket) -> None:
        why, told = f"process {process} is gone; {_AGAIN}", False
        with contextlib.suppress(OSError, ValueError), peer.makefile("rb") as lines:
            for line in lines:
                why, told = json.loads(line).get("stop"), True
                if why is not None:
                    break
        if why is not None:
            self._lost(why, told)

    def _lost(self, why: str, told: bool) -> None:
        with self._lock:
            if self._over or self.gone is not None:
                return
            self.gone = why
        if not told and not self._leads:
            self._leave(why)  # now: JAX is about to abort, and only process 0 has files to close
        if self._leads:
            for peer in self._peers.values():
                say(peer, {"stop": why})
        self._is_gone.set()
        if not self._ended.wait(_SECONDS_TO_END[self._leads]):  # a collective may hold it for ever
            self._leave(why)


def _keep_alive(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
