"""Hostile input to every route, made from the OpenAPI document."""

import asyncio
import contextlib

import httpx
import hypothesis
import pytest

from cdl_jax.deploy import Replica, open_log
from cdl_jax.deploy.serve import application
from tests.deploy.serving import config
from tests.deploy.small import Run

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
EXAMPLES = 20


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    path = tmp_path_factory.mktemp("log")
    Run(path).owner.release()
    settings, log = config(path, max_batch=4), open_log(str(path))
    with application(settings, log, Replica(log), None) as guarded:
        yield guarded


async def answered(app, method, path, **parts):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.request(method, path, **parts)


# Threads that earlier tests left, of a broker's client for one, may draw from `random` meanwhile.
@pytest.mark.filterwarnings("ignore:Do not use the .random. module")
def test_no_route_answers_hostile_input_with_5xx(app):
    document = asyncio.run(answered(app, "GET", "/openapi.json")).json()
    assert set(document["paths"]) == {
        "/predict", "/version", "/status", "/healthz", "/readyz", "/metrics", "/"
    }  # fmt: skip
    schema = schemathesis.openapi.from_dict(document)
    seen = set()
    for operation in schema.get_all_operations():
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            hostile(app, operation.ok().as_strategy(generation_mode=mode), seen)
    assert {("/predict", 200), ("/predict", 422), ("/version", 200)} <= seen


def hostile(app, cases, seen):
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(cases)
    def run(case):
        body = case.body
        parts = {"params": case.query, "headers": dict(case.headers or {})}
        if isinstance(body, bytes):
            parts["content"] = body
        elif not isinstance(body, schemathesis.core.NotSet):
            parts["json"] = body
        answer = asyncio.run(answered(app, case.method, case.path, **parts))
        seen.add((case.path, answer.status_code))
        assert answer.status_code < 500
        assert answer.headers["x-model-version"] == "0"

    with contextlib.suppress(
        hypothesis.errors.Unsatisfiable
    ):  # without input there is no wrong one
        run()
