"""What a request must be before anything looks at it: not too large, not too slow, let in."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cdl_jax.deploy.metrics import Metrics

Message = dict[str, Any]
OPEN_ROUTES = ("/", "/healthz", "/readyz")  # without a token, too
SLOW_SECONDS = 10.0  # for a header, or without taking anything of an answer


class Guard:
    """ASGI middleware: token, size and time of the body, the version in every answer.

    Args:
      app: what is guarded.
      metrics: counts requests and times them.
      version: gives the version served.
      token: that `Authorization: Bearer` must carry, or None.
      max_body: bytes of a request's body.
      body_seconds: in which the whole body must have come.
      routes: paths that exist, for the metrics' labels.
    """

    def __init__(
        self,
        app: Any,
        *,
        metrics: Metrics,
        version: Callable[[], int],
        token: str | None,
        max_body: int,
        body_seconds: float,
        routes: set[str],
    ):
        self._app, self._metrics, self._version, self._token = app, metrics, version, token
        self._max_body, self._body_seconds, self._routes = max_body, body_seconds, routes

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, route = time.perf_counter(), scope["path"]
        route = route if route in self._routes else "other"
        told = self._teller(send, route)
        if refusal := self._refusal(scope):
            await refuse(told, *refusal)
        else:
            await self._read(scope, receive, told)
        self._metrics.latency.labels(route).observe(time.perf_counter() - begun)

    def _teller(self, send: Any, route: str) -> Callable[[Message], Awaitable[None]]:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                if not any(name == b"x-model-version" for name, _ in headers):
                    headers.append((b"x-model-version", str(self._version()).encode()))
                self._metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        return tell

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            return 413, self._too_large()
        if self._token is not None and scope["path"] not in OPEN_ROUTES:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                return 401, "give the server's token in the header Authorization: Bearer TOKEN"
        return None

    async def _read(self, scope: Message, receive: Any, send: Any) -> None:
        """Takes the whole body in, then lets the app run on it."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > self._max_body:
                        return await refuse(send, 413, self._too_large())
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            return await refuse(
                send, 408, f"the body took over {self._body_seconds} s; send it faster"
            )
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def given() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, given, send)

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body} bytes; send fewer samples at a time"


async def refuse(send: Any, status: int, sentence: str) -> None:
    """An answer of one sentence, in the form that FastAPI's own errors have; closes."""
    import json

    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Protocol(H11Protocol):
    """uvicorn's own, which drops a client that is slow to send a header or to take its answers."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._hurry()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        self._look()

    def timeout_keep_alive_handler(self) -> None:
        """See uvicorn. Its orderly end waits for a client that takes what was answered."""
        super().timeout_keep_alive_handler()
        self._hurry()

    def pause_writing(self) -> None:
        """See asyncio: the client does not take its answers."""
        super().pause_writing()
        self._hurry()

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        self._look()  # a header may have begun meanwhile

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        self._relax()

    def _look(self) -> None:
        """The time of a header begins with its first byte, and ends with its last one."""
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if begun or self.flow.write_paused or self.transport.is_closing():
            self._hurry()
        else:
            self._relax()

    def _hurry(self) -> None:
        if self._deadline is None:
            waiting = self.transport.get_write_buffer_size()
            self._deadline = self.loop.call_later(SLOW_SECONDS, self._drop, waiting)

    def _drop(self, before: int) -> None:
        """Unless the client took something of what waited for it."""
        self._deadline = None
        if 0 < self.transport.get_write_buffer_size() < before:
            self._hurry()
        else:
            self.transport.abort()

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
