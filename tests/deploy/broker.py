"""A real redis-server on a free loopback port."""

import shutil
import signal
import socket
import subprocess
import time

import pytest

ABSENT = "redis-server is not installed (apt-get install redis-server)"
needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason=ABSENT)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Broker:
    """Starts, kills and restarts a server; it answers acknowledged writes after a kill."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def url(self, name="log"):
        return f"redis://127.0.0.1:{self.port}/{name}?store={self.folder}/{name}"

    def start(self):
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(self.folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            except OSError:
                assert time.monotonic() < end, "redis-server does not answer"
                time.sleep(0.02)

    def kill(self, *, with_data=False):
        """SIGKILL; its data goes too where asked."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if with_data:
            shutil.rmtree(self.folder / "appendonlydir")
