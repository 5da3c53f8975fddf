"""A real redis-server on a free loopback port."""

import contextlib
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time


class Broker:
    """Starts, kills and restarts a server that has on disk whatever it acknowledged.

    Args:
      folder: for its data, and for the snapshots beside it.
      durable: whether each write is on disk before it is acknowledged.
    """

    def __init__(self, folder: pathlib.Path, *, durable: bool = True):
        self.folder, self.port, self._durable = folder, free_port(), durable
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def url(self, name: str = "log") -> str:
        """A log's URL at this broker."""
        return f"redis://127.0.0.1:{self.port}/{name}?store={self.folder}/{name}"

    def start(self) -> None:
        """Starts the server; returns once it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "yes" if self._durable else "no", "--appendfsync", "always"]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self.folder)], stdout=subprocess.DEVNULL
        )
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def kill(self, *, with_data: bool = False) -> None:
        """SIGKILL; its data goes too where asked."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if with_data:
            shutil.rmtree(self.folder / "appendonlydir")


def free_port() -> int:
    """A port that nobody listens on, below those that the system hands out.

    Else another process may get it while a killed server is away.
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port
