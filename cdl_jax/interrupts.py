"""Ctrl-C and SIGTERM between two pieces of work, never within one."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupts:
    """While it is entered, the first SIGINT or SIGTERM waits for the work in hand to end.

    A second one raises KeyboardInterrupt where it finds the program. Signals whose handler is
    not Python's are left alone, and outside the main thread, where none arrive, it does nothing.

    Attributes:
      came: whether there was an interrupt.

    Examples:
      >>> with Interrupts() as interrupts:
      ...     for piece in interrupts.between(["a", "b", "c"]):
      ...         print(piece)
      ...         if piece == "b":
      ...             signal.raise_signal(signal.SIGINT)
      ...             print("and this to its end")
      a
      b
      and this to its end
      >>> interrupts.came
      True
    """

    def __init__(self) -> None:
        self.came = False
        self._waiting = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(signal.getsignal(number)):
                    self._handlers[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The items, until an interrupt; only the wait for the next one is cut short."""
        source = iter(items)
        while not self.came:
            try:
                with self._wait():
                    item = next(source)
            except (KeyboardInterrupt, StopIteration):
                return
            yield item

    @contextlib.contextmanager
    def _wait(self) -> Iterator[None]:
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.came or self._waiting:
            self.came = True
            raise KeyboardInterrupt
        self.came = True
