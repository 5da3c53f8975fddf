"""The server as a process, spoken to over sockets."""

import contextlib
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from cdl_jax import cli
from tests.deploy.browser import Browser, needs_chromium
from tests.deploy.serving import X_SHAPE
from tests.deploy.small import Run

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = ["--backend", "numpy", "--predict", "tests.deploy.serving:predict",
         "--input-shape", *map(str, X_SHAPE), "--port", "0"]  # fmt: skip


@contextlib.contextmanager
def served(log, *flags):
    """A `cdl-jax serve` process: its URL and itself."""
    command = [sys.executable, "-c", START, "serve", "--log", str(log), *FLAGS, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        line = process.stdout.readline()
        assert "serving version" in line, line
        yield line.split()[-1], process
    finally:
        process.kill()
        process.communicate()


START = (
    "import sys, cdl_jax.deploy.guard as guard; guard.SLOW_SECONDS = 0.5\n"
    "from cdl_jax.cli import main; sys.exit(main())"
)


def resident(process):
    """Bytes of memory that a process holds."""
    pages = pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_it_serves_follows_drops_the_silent_and_stops_in_order(tmp_path):
    run = Run(tmp_path)
    with served(tmp_path) as (url, process):
        port = int(url.rsplit(":", 1)[1])
        silent = socket.create_connection(("127.0.0.1", port))
        half = socket.create_connection(("127.0.0.1", port))
        half.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nX-Slow")
        run.publish(3)
        end = time.monotonic() + 10
        while httpx.get(f"{url}/version").json()["version"] != 3:
            assert time.monotonic() < end
        assert httpx.get(f"{url}/version").json()["digest"] == run.digest()
        for connection in (silent, half):
            connection.settimeout(10)
            assert connection.recv(1) == b""  # dropped
            connection.close()
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        assert process.returncode in (0, cli.INTERRUPTED, -signal.SIGTERM)


def test_it_drops_the_slow_whatever_came_before_and_keeps_nothing_of_them(tmp_path):
    Run(tmp_path).owner.release()
    good = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with served(tmp_path) as (url, process):
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))

        def turn():
            half = socket.create_connection(address, timeout=4)  # uvicorn's own is 5 s
            half.sendall(good + b"GET / HTTP/1.1\r\nX-Slow")
            with half, contextlib.suppress(ConnectionResetError):
                while half.recv(1 << 20):
                    pass
            with socket.create_connection(address, timeout=1) as deaf:
                with contextlib.suppress(OSError):  # to answers of 50 MB and more
                    deaf.sendall(good * 20_000)
                dropped = select.poll()
                dropped.register(deaf, 0)
                assert dropped.poll(10_000)

        turn()
        before = resident(process)
        for _ in range(3):
            turn()
        assert resident(process) - before < 4 << 20
        assert httpx.get(f"{url}/healthz").json() == {"healthy": True}


def test_garbage_is_answered_by_4xx_and_memory_does_not_grow(tmp_path):
    Run(tmp_path).owner.release()
    garbage = [
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"GET /" + b"a" * 10**6,
    ]
    with served(tmp_path, "--max-body", "100000") as (url, process):
        port = int(url.rsplit(":", 1)[1])

        def turn():
            for text in garbage:
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.settimeout(5)
                    with contextlib.suppress(OSError):
                        connection.sendall(text)
                        connection.shutdown(socket.SHUT_WR)
                        answer = connection.recv(100)
                        assert answer[:10] in (b"", b"HTTP/1.1 4"), answer
            body = b'{"inputs": [[' + b"1," * 49_000 + b"1]]}"
            assert httpx.post(f"{url}/predict", content=body).status_code == 422
            assert httpx.post(f"{url}/predict", content=b"x" * 10**6).status_code == 413

        for _ in range(3):
            turn()
        before = resident(process)
        for _ in range(20):
            turn()
        assert resident(process) - before < 8 << 20
        assert httpx.get(f"{url}/healthz").json() == {"healthy": True}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--log", "/nowhere", "--wait", "0"], "there is no log at /nowhere"),
        (["--port", "70000"], "port is 70000; give 0 to 65535"), ([], "serve needs --log"),
        (["--max-batch", "0"], "max_batch is 0"), (["--wait", "-1"], "wait is -1"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8000"),
        (["--token-file", "/nowhere"], "cannot read --token-file /nowhere"),
        (["--predict", "nothing:f", "--port", "0"], "cannot find nothing:f"),
        (["--predict", "math:pi", "--port", "0"], "math:pi is no function"),
        (["--port", "0"], "names no model of this package"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_sentence(capsys, tmp_path, flags, sentence):
    if flags and "--log" not in flags:
        Run(tmp_path).owner.release()
        flags = ["--log", str(tmp_path), *flags]
    assert cli.main(["serve", *flags]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_token_must_be_one(capsys, tmp_path):
    Run(tmp_path / "log").owner.release()
    (tmp_path / "token").write_text("short")
    words = ["serve", "--log", str(tmp_path / "log"), "--token-file", str(tmp_path / "token")]
    assert cli.main(words) == 1
    assert "must hold one token" in capsys.readouterr().err


@needs_chromium
def test_the_page_shows_what_is_served_live(tmp_path):
    run = Run(tmp_path / "log")
    summary = {"accuracy": 0.9, "frozen_accuracy": 0.8, "bytes_sent": 5000, "versions": 10,
               "dense_bytes": 100_000}  # fmt: skip
    run.publisher.tell(summary)
    run.publish(2)
    with served(tmp_path / "log") as (url, process), Browser(tmp_path / "browser") as page:

        def wait_for(**shown):
            end = time.monotonic() + 20
            while any(page.text(name) != text for name, text in shown.items()):
                assert time.monotonic() < end, {name: page.text(name) for name in shown}
                time.sleep(0.1)

        page.call("Page.navigate", url=url)
        wait_for(version="2", lag="0", accuracy="0.9000", bytes="500", times="1/200 of the model")
        wait_for(digest=run.digest(), error="")
        run.publish(1)
        wait_for(version="3", digest=run.digest())  # by itself
        path = tmp_path / "log" / "updates" / f"{4:012d}"
        run.publish(1)
        wait_for(version="4")
        damaged = bytearray(path.read_bytes())
        (path.parent / f"{5:012d}").write_bytes(damaged)
        wait_for(error="update 5 is refused: it is version 4, the next one is 5", lag="1")
        if "CDL_JAX_SCREENSHOT" in os.environ:
            pathlib.Path(os.environ["CDL_JAX_SCREENSHOT"]).write_bytes(page.screenshot())
        process.kill()
        wait_for(error="Failed to fetch")
