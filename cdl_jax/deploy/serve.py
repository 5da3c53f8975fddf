"""`cdl-jax serve`: a replica behind HTTP."""

import contextlib
import dataclasses
import pathlib
import socket
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np

from cdl_jax.deploy.follow import open_first
from cdl_jax.deploy.log import UpdateLog
from cdl_jax.deploy.replica import Replica, model_factory
from cdl_jax.errors import ConfigError
from cdl_jax.wire import signing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of `cdl-jax serve`."""

    log: str | None = None
    """Log of versions to follow: a folder or URL."""
    host: str = "127.0.0.1"
    """Address to listen on; the default lets this machine alone in."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    backend: Literal["numpy", "jax"] = "jax"
    """Where the model lies; numpy for a predict function that needs no JAX."""
    public_key: str | None = None
    """PEM file of the trainer's public key; what it did not sign is refused. None: no check."""
    predict: str | None = None
    """MODULE:FUNCTION called with (params, model_state, inputs). None: the model that the log's
    first record names."""
    input_shape: tuple[int, ...] = ()
    """Of one sample, for --predict."""
    input_dtype: str = "float32"
    """Of the samples, for --predict."""
    token_file: str | None = None
    """File with a token that requests must carry (Authorization: Bearer). None lets all in."""
    max_batch: int = 32
    """Samples in a request, and in a batch of several requests, at most."""
    max_waiting: int = 4096
    """Samples that may wait; what comes on top is told to try again (429)."""
    max_body: int = 8 << 20
    """Bytes of a request's body, at most."""
    body_seconds: float = 10.0
    """Seconds in which a request's body must have come."""
    connections: int = 512
    """Open connections, at most."""
    max_lag: float | None = None
    """Seconds of lag from which on /readyz says no. None: never."""
    at: int | None = None
    """Serve this version. None: follow the log."""
    wait: float = 60.0
    """Seconds to wait for a log that has no snapshot yet."""

    def checked(self) -> Self:
        """Itself; raises ConfigError for a value that cannot be."""
        if self.log is None:
            raise ConfigError("serve needs --log, the folder or URL that a trainer publishes to")
        for name in ("max_batch", "max_waiting", "max_body", "body_seconds", "connections"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give more than 0")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}; give 0 to 65535")
        if self.wait < 0 or (self.at or 0) < 0:
            raise ConfigError(f"wait is {self.wait}, at is {self.at}; give 0 or more")
        return self


def serve(config: ServeConfig) -> None:
    """Follows a log and answers requests until Ctrl-C or SIGTERM.

    Raises:
      LogError: when there is no such log.
      ConfigError: when the model cannot be served, or the address not be listened on.
    """
    key = None if config.public_key is None else signing().read_public_key(config.public_key)
    token = None if config.token_file is None else _token(config.token_file)
    with listening(config.host, config.port) as sock:
        log = open_first(config.log or "", config.wait)
        replica = Replica(log, model_factory(config.backend), at=config.at, key=key)
        with application(config, log, replica, token) as app:
            host, port = sock.getsockname()[:2]
            print(f"cdl-jax: serving version {replica.version} on http://{host}:{port}", flush=True)
            server_of(app, config).run(sockets=[sock])


@contextlib.contextmanager
def application(
    config: ServeConfig, log: UpdateLog, replica: Replica, token: str | None
) -> Iterator[Any]:
    """The ASGI application of a replica, which follows its log until the context ends."""
    try:
        from cdl_jax.deploy import guard, predictors, server
        from cdl_jax.deploy.batcher import Batcher
        from cdl_jax.deploy.follower import Follower
        from cdl_jax.deploy.metrics import Metrics
    except ImportError as error:
        raise ConfigError(f"serve needs more: pip install 'cdl_jax[serve]' ({error})") from error
    if config.predict is None:
        predictor = predictors.built_in(replica.manifest)
    else:
        predictor = predictors.by_name(config.predict, config.input_shape, config.input_dtype)
    metrics = Metrics()
    batcher = Batcher(
        replica, predictor.predict_fn, max_batch=config.max_batch,
        max_waiting=config.max_waiting,
        on_batch=lambda version, samples: _answered(metrics, version, samples),
    )  # fmt: skip
    batcher.warm_up(np.zeros(predictor.shape, predictor.dtype))
    follower = Follower(replica, log, metrics)
    app = server.create_app(replica, follower, batcher, predictor, metrics, max_lag=config.max_lag)
    try:
        yield guard.Guard(
            app, metrics=metrics, version=lambda: replica.version, token=token,
            max_body=config.max_body, body_seconds=config.body_seconds,
            routes={route.path for route in app.routes},  # pyright: ignore[reportAttributeAccessIssue]
        )  # fmt: skip
    finally:
        follower.close()
        batcher.close()


def _answered(metrics: Any, version: int, samples: int) -> None:
    metrics.batch.observe(samples)
    metrics.first_answer.answered(version)


def server_of(app: Any, config: ServeConfig) -> Any:
    """The uvicorn server with the limits that the settings name."""
    import uvicorn

    from cdl_jax.deploy.guard import Protocol

    return uvicorn.Server(uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="off", log_level="warning", access_log=False,
        limit_concurrency=config.connections, timeout_keep_alive=5, timeout_graceful_shutdown=5,
    ))  # fmt: skip


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address; raises ConfigError where that cannot be."""
    try:
        return socket.create_server((host, port), backlog=512)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _token(path: str) -> str:
    try:
        token = pathlib.Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --token-file {path}: {error}") from error
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise ConfigError(f"--token-file {path} must hold one token of 16 or more ASCII characters")
    return token
