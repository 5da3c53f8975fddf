"""The HTTP face of a replica: predictions, version, health, metrics, and a page to look at."""

import importlib.resources
import json
import math
from typing import Any

import fastapi
import numpy as np
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response

import cdl_jax.deploy
from cdl_jax.core import digest as digests
from cdl_jax.deploy.batcher import Answer, Batcher, Busy
from cdl_jax.deploy.follower import Follower
from cdl_jax.deploy.metrics import Metrics
from cdl_jax.deploy.predictors import Predictor
from cdl_jax.deploy.replica import Replica

RAW = "application/octet-stream"
_LONG = 1 << 16  # bytes of JSON that are parsed aside, so that others need not wait


class BadInput(ValueError):
    """A request's inputs are not what the model takes."""


def create_app(
    replica: Replica,
    follower: Follower,
    batcher: Batcher,
    predictor: Predictor,
    metrics: Metrics,
    *,
    max_lag: float | None = None,
) -> fastapi.FastAPI:
    """The application; `Guard` belongs around it.

    Args:
      replica, follower, batcher, predictor, metrics: what it serves from and tells.
      max_lag: seconds of lag from which on `/readyz` says no.
    """
    app = fastapi.FastAPI(title="cdl_jax", docs_url=None, redoc_url=None)
    page = importlib.resources.files(cdl_jax.deploy).joinpath("page.html").read_text()
    inputs = _Inputs(predictor, batcher.max_batch)

    @app.post("/predict", responses=_ANSWERS, openapi_extra=inputs.schema())
    async def predict(request: fastapi.Request) -> Response:
        """Outputs for a batch of samples, as JSON or raw arrays, and the version they are of."""
        body = await request.body()
        raw = request.headers.get("content-type", "").split(";")[0].strip().lower() == RAW
        try:
            read = inputs.from_raw if raw else inputs.from_json
            given = read(body) if len(body) < _LONG else await run_in_threadpool(read, body)
            answer = await batcher.ask(given)
        except BadInput as error:
            return JSONResponse({"detail": str(error)}, 422)
        except Busy:
            again = {"retry-after": "1"}
            return JSONResponse({"detail": "too much waits; try again"}, 429, headers=again)
        return _raw(answer) if raw else _json(answer)

    @app.get("/version")
    async def version() -> dict[str, Any]:
        """The version served, its digest, the lag, and what is wrong, if anything."""
        return _version(replica, follower)

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """What the page shows: `/version`, what the trainer last said, bytes taken."""
        taken = {"received_bytes": int(metrics.bytes._value.get())}
        return {**_version(replica, follower), **taken, "trainer": follower.status}

    @app.get("/healthz", responses={503: {"description": "a thread of the server has ended"}})
    async def healthz() -> Response:
        """Whether the server's threads run."""
        return JSONResponse({"healthy": follower.alive}, 200 if follower.alive else 503)

    @app.get("/readyz", responses={503: {"description": "the lag is over the limit"}})
    async def readyz() -> Response:
        """Whether requests should come here."""
        ready = follower.alive and (max_lag is None or follower.lag.seconds <= max_lag)
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics")
    async def tell_metrics() -> Response:
        """Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse)
    async def show() -> str:
        """The page."""
        return page

    return app


class _Inputs:
    """From a body to an array that the model takes."""

    def __init__(self, predictor: Predictor, most: int):
        self._shape, self._dtype, self._most = predictor.shape, predictor.dtype, most

    def from_raw(self, body: bytes) -> np.ndarray:
        size = self._dtype.itemsize * math.prod(self._shape)
        if not body or len(body) % size:
            raise BadInput(f"the body has {len(body)} bytes; give a multiple of {size}, a sample's")
        values = np.frombuffer(body, self._dtype.newbyteorder("<")).astype(self._dtype)
        return self._checked(values.reshape(-1, *self._shape))

    def from_json(self, body: bytes) -> np.ndarray:
        try:
            given = json.loads(body)
            values = np.asarray(given["inputs"])
            if values.dtype.kind not in "biuf":
                raise ValueError("it holds what is no number, or rows of different lengths")
            with np.errstate(all="ignore"):
                numbers = values.astype(self._dtype)
            if not (self._fits(values) and np.isfinite(numbers).all()):
                raise ValueError(f"a number is out of {self._dtype}'s range")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise BadInput(
                f'inputs cannot be read ({error}); give {{"inputs": [...]}} of {self._dtype}'
            ) from None
        return self._checked(numbers)

    def _fits(self, values: np.ndarray) -> bool:
        if self._dtype.kind not in "iu" or not values.size:
            return True
        limits = np.iinfo(self._dtype)
        return limits.min <= values.min() and values.max() <= limits.max

    def _checked(self, values: np.ndarray) -> np.ndarray:
        if values.shape[1:] != self._shape or not 1 <= len(values) <= self._most:
            raise BadInput(
                f"inputs have the shape {list(values.shape)}; give [N, "
                f"{', '.join(map(str, self._shape))}] with N from 1 to {self._most}"
            )
        return values

    def schema(self) -> dict[str, Any]:
        """The request body, for OpenAPI."""
        items: dict[str, Any] = {"type": "number"}
        if self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            items = {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
        for size in reversed(self._shape):
            items = {"type": "array", "items": items, "minItems": size, "maxItems": size}
        array = {"type": "array", "items": items, "minItems": 1, "maxItems": self._most}
        body = {"type": "object", "properties": {"inputs": array}, "required": ["inputs"]}
        raw = {"type": "string", "format": "binary"}
        content = {"application/json": {"schema": body}, RAW: {"schema": raw}}
        return {"requestBody": {"required": True, "content": content}}


_ANSWERS: dict[int | str, dict[str, Any]] = {
    408: {"description": "the body came too slowly"},
    413: {"description": "the body is too large"},
    422: {"description": "the inputs are not what the model takes"},
    429: {"description": "too much waits"},
}


def _json(answer: Answer) -> Response:
    return JSONResponse(
        {"version": answer.version, "outputs": _finite(answer.outputs)},
        headers={"x-model-version": str(answer.version)},
    )


def _raw(answer: Answer) -> Response:
    headers = {
        "x-model-version": str(answer.version),
        "x-shape": ",".join(map(str, answer.outputs.shape)),
        "x-dtype": answer.outputs.dtype.name,
    }
    return Response(np.ascontiguousarray(answer.outputs).tobytes(), media_type=RAW, headers=headers)


def _finite(outputs: np.ndarray) -> Any:
    """Nested lists; JSON has no infinities, so they become null."""
    values = outputs.astype(object)
    values[~np.isfinite(outputs.astype(np.float64))] = None
    return values.tolist()


def _version(replica: Replica, follower: Follower) -> dict[str, Any]:
    with replica.lease() as lease:
        version, digest = lease.version, digests.to_hex(lease.digest)
    return {
        "version": version,
        "digest": digest,
        "lineage": replica.lineage.hex(),
        "lag_versions": follower.lag.versions,
        "lag_seconds": round(follower.lag.seconds, 3),
        "last_error": follower.last_error,
        "held_back": replica.held_back,
        "pinned": replica.pinned,
    }
