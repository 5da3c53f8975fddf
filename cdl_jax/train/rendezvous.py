"""How the processes of a run meet at the first one's address, before JAX's service takes it."""

import contextlib
import ipaddress
import json
import os
import socket
import time
from typing import Any

from cdl_jax.errors import TrainingError

_HELLO_SECONDS, _PAUSE = 5.0, 0.1


def gathered(
    coordinator: str, port: int, processes: int, seconds: float
) -> dict[int, socket.socket]:
    """Process 0's connections to the others, once all of them are here."""
    here: dict[int, socket.socket] = {}
    try:
        with _listening(coordinator, port) as server:
            until = time.monotonic() + seconds
            while len(here) < processes - 1:
                server.settimeout(max(until - time.monotonic(), 1e-3))
                try:
                    peer = server.accept()[0]
                except TimeoutError:
                    missing = sorted({*range(1, processes)} - {*here})
                    raise TrainingError(
                        f"process {', '.join(map(str, missing))} of {processes} did not come to "
                        f"{coordinator} in {seconds:g} s; start every process with the same "
                        "--coordinator and --processes, and a --process-id of its own"
                    ) from None
                _welcome(peer, here, processes)
    except TrainingError as error:
        for peer in here.values():
            say(peer, {"stop": str(error)})
            peer.close()
        raise
    for peer in here.values():
        say(peer, {"go": True})
    return here


def _welcome(peer: socket.socket, here: dict[int, socket.socket], processes: int) -> None:
    hello = heard(peer, _HELLO_SECONDS)
    number, of = hello.get("process"), hello.get("of")
    if not isinstance(number, int):
        return peer.close()  # somebody else, who tries all ports
    if of != processes or number in here:
        odd = "twice" if of == processes else f"to a run of {processes}"
        why = (
            f"process {number} of {of} came {odd}; start every process with the same --processes, "
            "and a --process-id of its own"
        )
        say(peer, {"stop": why})
        peer.close()
        raise TrainingError(why)
    here[number] = peer


def joined(
    coordinator: str, place: tuple[str, int], processes: int, process_id: int, seconds: float
) -> socket.socket:
    """The connection to process 0, once all are there and JAX's service listens."""
    peer = _connected(coordinator, place, process_id, processes, seconds)
    say(peer, {"process": process_id, "of": processes})
    answer = heard(peer, 2 * seconds)  # process 0 may have come, and begun to wait, just now
    if "go" not in answer:
        peer.close()
        why = answer.get("stop", "what answers there is no process 0 of this run, or it has ended")
        raise TrainingError(f"process {process_id} did not meet the others at {coordinator}: {why}")
    try:
        _connected(coordinator, place, process_id, processes, seconds).close()
    except TrainingError:
        peer.close()
        raise
    return peer


def _connected(
    coordinator: str, place: tuple[str, int], process_id: int, processes: int, seconds: float
) -> socket.socket:
    until = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(place, timeout=max(_PAUSE, min(seconds, 5.0)))
        except OSError as error:
            if time.monotonic() > until:
                raise TrainingError(
                    f"process {process_id} of {processes} did not meet the others at "
                    f"{coordinator} in {seconds:g} s ({error.strerror or error}); start process 0 "
                    "there, or give its address to --coordinator"
                ) from error
        time.sleep(_PAUSE)


def is_loopback(coordinator: str) -> bool:
    """Whether only processes of this machine can come to `HOST:PORT`."""
    host, port = coordinator.rsplit(":", 1)
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(place[0]).is_loopback for *_, place in found)
    return False


def _listening(coordinator: str, port: int) -> socket.socket:
    """At the loopback address where the coordinator is one, else for every host."""
    try:
        if is_loopback(coordinator):
            host = coordinator.rsplit(":", 1)[0].strip("[]")
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(place[:2], family=family)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise TrainingError(
            f"process 0 cannot listen at {coordinator}: {os.strerror(error.errno or 0)}; give "
            "another port"
        ) from error


def say(peer: socket.socket, message: dict[str, Any]) -> None:
    """Sends a message, one line of JSON."""
    with contextlib.suppress(OSError):  # who is gone is told by the watcher
        peer.sendall(json.dumps(message).encode() + b"\n")


def heard(peer: socket.socket, seconds: float) -> dict[str, Any]:
    """The next message, one line; empty where none comes in time, or it is of another kind."""
    peer.settimeout(seconds)
    try:
        with peer.makefile("rb", buffering=0) as lines:
            message = json.loads(lines.readline(1 << 16))
    except (OSError, ValueError):
        return {}
    finally:
        peer.settimeout(None)
    return message if isinstance(message, dict) else {}
