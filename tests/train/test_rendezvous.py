import socket

import pytest

from cdl_jax.train import rendezvous


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("localhost", True), ("", False)])
def test_a_loopback_coordinator_hears_this_machine_alone(host, own):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    coordinator = f"{host or '0.0.0.0'}:{port}"
    assert rendezvous.is_loopback(coordinator) is own
    with rendezvous._listening(coordinator, port) as server:
        assert (server.getsockname()[0] in ("127.0.0.1", "::1")) is own


def test_what_is_no_message_is_heard_as_nothing():
    for said, heard in (
        (b'{"go": true}\n', {"go": True}),
        (b"GET / HTTP/1.1\r\n", {}),
        (b"[1]\n", {}),
        (b"", {}),
    ):
        here, there = socket.socketpair()
        with here, there:
            here.sendall(said)
            here.shutdown(socket.SHUT_WR)
            assert rendezvous.heard(there, 1.0) == heard
