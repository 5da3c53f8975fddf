import asyncio
import contextlib
import json
import re
import threading
import time

import httpx
import jax
import numpy as np
import pytest

from cdl_jax.deploy import Replica, open_log
from cdl_jax.deploy.batcher import Batcher, Busy
from cdl_jax.deploy.serve import application
from tests.deploy.serving import config, predict
from tests.deploy.small import Run

X = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
TOKEN = "a token of some length"


@contextlib.asynccontextmanager
async def serving(log, token=None, **changes):
    settings = config(log, **changes)
    opened = open_log(settings.log)
    replica = Replica(opened, at=settings.at)
    with application(settings, opened, replica, token) as app:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            client.replica = replica
            yield client


def expected(run, inputs):
    padded = np.pad(inputs, ((0, 1), (0, 0)))  # as the batcher does; sums depend on the size
    return predict(jax.device_get(run.state.params), None, padded)[: len(inputs)]


async def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_answers_are_the_served_versions_and_say_which(tmp_path):
    run = Run(tmp_path)

    async def go():
        async with serving(tmp_path) as client:
            for version in range(3):
                await until(lambda v=version: client.replica.version == v)
                answer = await client.post("/predict", json={"inputs": X.tolist()})
                assert answer.status_code == 200
                assert answer.json()["version"] == version
                assert answer.headers["x-model-version"] == str(version)
                outputs = np.array(answer.json()["outputs"], np.float32)
                assert np.array_equal(outputs, expected(run, X))
                raw = await client.post(
                    "/predict", content=X.astype("<f4").tobytes(),
                    headers={"content-type": "application/octet-stream"},
                )  # fmt: skip
                assert raw.headers["x-shape"] == "3,1"
                assert np.array_equal(np.frombuffer(raw.content, "<f4"), outputs[:, 0])
                run.publish()

    asyncio.run(go())


def test_version_health_metrics_and_status(tmp_path):
    run = Run(tmp_path)
    run.publish(2)

    async def go():
        async with serving(tmp_path) as client:
            await until(lambda: client.replica.version == 2)
            version = (await client.get("/version")).json()
            assert version["version"] == 2
            assert version["digest"] == run.digest()
            assert (version["lag_versions"], version["last_error"]) == (0, None)
            assert (await client.get("/healthz")).json() == {"healthy": True}
            assert (await client.get("/readyz")).json() == {"ready": True}
            run.publisher.tell({"accuracy": 0.5})
            run.publish(1)
            await until(lambda: client.replica.version == 3)
            await client.post("/predict", json={"inputs": X.tolist()})
            await asyncio.sleep(1.2)
            status = (await client.get("/status")).json()
            assert status["trainer"] == {"accuracy": 0.5}
            assert status["received_bytes"] == sum(map(len, run.blobs))
            text = (await client.get("/metrics")).text
            for line in ("cdl_swaps_total 3.0", "cdl_version 3.0", "cdl_lag_versions 0.0",
                         "cdl_freshness_seconds_count 3.0", "cdl_apply_seconds_count 3.0",
                         "cdl_first_answer_seconds_count 1.0",
                         'cdl_requests_total{route="/version",status="200"} 1.0'):  # fmt: skip
                assert line in text
            assert "Served model" in (await client.get("/")).text

    asyncio.run(go())


def test_a_damaged_update_is_told_and_the_old_version_served(tmp_path):
    run = Run(tmp_path)
    run.publish(3)
    path = tmp_path / "updates" / f"{3:012d}"
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    async def go():
        async with serving(tmp_path, max_lag=0.1) as client:
            await until(lambda: client.replica.version == 2)
            await asyncio.sleep(1.3)
            version = (await client.get("/version")).json()
            assert "checksum" in version["last_error"]
            assert version["lag_versions"] == 1
            assert version["lag_seconds"] > 1
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()) == (503, {"ready": False})
            text = (await client.get("/metrics")).text
            refused = re.search(r'cdl_refused_updates_total{reason="damaged"} (\d+)', text)
            assert refused
            assert int(refused[1]) >= 1
            assert (await client.post("/predict", json={"inputs": X.tolist()})).status_code == 200

    asyncio.run(go())


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "cannot be read"), (b"{", "cannot be read"), (b"[1]", "cannot be read"),
        (b'{"inputs": "x"}', "no number"), (b'{"inputs": [[1], [1, 2]]}', "cannot be read"),
        (b'{"inputs": []}', "shape"), (b'{"inputs": [[1, 2, 3]]}', "shape"), (b"null", "cannot"),
        (b'{"inputs": [[1,2,3,4,5,6,null]]}', "cannot"), (b"[" * 3000, "cannot be read"),
        (b'{"inputs": [[NaN,2,3,4,5,6,7]]}', "range"),
        (b'{"inputs": [[1e999,2,3,4,5,6,7]]}', "range"),
        (b'{"inputs": [[1' + b"0" * 400 + b',2,3,4,5,6,7]]}', "cannot"), (b"\xff\xfe", "cannot"),
        (json.dumps({"inputs": [[0] * 7] * 9}).encode(), "N from 1 to 8"),
        (b'{"inputs": [[' + b"1" * 3900 + b",2,3,4,5,6,7]]}", "cannot"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path_factory, body, word):
    async def go():
        async with serving(log_of(tmp_path_factory)) as client:
            answer = await client.post("/predict", content=body)
            assert answer.status_code == 422
            assert word in answer.json()["detail"]
            assert answer.headers["x-model-version"] == "0"

    asyncio.run(go())


LOGS = {}


def log_of(factory):
    """One log for the tests that only read it."""
    if "log" not in LOGS:
        LOGS["log"] = factory.mktemp("log")
        Run(LOGS["log"]).owner.release()
    return LOGS["log"]


def test_raw_bytes_must_be_whole_samples(tmp_path_factory):
    async def go():
        async with serving(log_of(tmp_path_factory)) as client:
            headers = {"content-type": "application/octet-stream; x=y"}
            for body in (b"", b"123", bytes(4 * 7 * 9)):
                answer = await client.post("/predict", content=body, headers=headers)
                assert answer.status_code == 422
            answer = await client.post("/predict", content=bytes(28), headers=headers)
            assert answer.status_code == 200

    asyncio.run(go())


def test_large_bodies_are_refused_announced_or_not(tmp_path_factory):
    async def endless():
        while True:
            sent.append(500)
            yield b"x" * 500

    sent = []

    async def go():
        async with serving(log_of(tmp_path_factory)) as client:
            answer = await client.post("/predict", content=b"x" * 4001)
            assert answer.status_code == 413
            assert "larger than 4000 bytes" in answer.json()["detail"]
            answer = await client.post("/predict", content=endless())
            assert answer.status_code == 413
            assert sum(sent) < 6000

    asyncio.run(go())


def test_a_slow_body_is_given_up(tmp_path_factory):
    async def drip():
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    async def go():
        async with serving(log_of(tmp_path_factory), body_seconds=0.3) as client:
            begun = time.monotonic()
            assert (await client.post("/predict", content=drip())).status_code == 408
            assert time.monotonic() - begun < 5

    asyncio.run(go())


def test_a_token_is_asked_for_where_one_is_set(tmp_path_factory):
    async def go():
        async with serving(log_of(tmp_path_factory), token=TOKEN) as client:
            for path in ("/version", "/metrics", "/status", "/openapi.json", "/none"):
                assert (await client.get(path)).status_code == 401
                wrong = {"authorization": f"Bearer {TOKEN}x"}
                assert (await client.get(path, headers=wrong)).status_code == 401
            assert (await client.post("/predict", json={})).status_code == 401
            for path in ("/", "/healthz", "/readyz"):
                assert (await client.get(path)).status_code == 200
            right = {"authorization": f"Bearer {TOKEN}"}
            assert (await client.get("/version", headers=right)).status_code == 200

    asyncio.run(go())


class Slow:
    """A predict function that waits to be let go, and remembers its batches."""

    def __init__(self):
        self.sizes, self.go = [], threading.Event()

    def __call__(self, params, model_state, inputs):
        self.sizes.append(len(inputs))
        assert self.go.wait(10)
        return inputs * 2


def test_what_waits_goes_through_together_and_no_more_than_the_queue_takes(tmp_path_factory):
    async def go():
        slow = Slow()
        batcher = Batcher(
            Replica(open_log(str(log_of(tmp_path_factory)))), slow, max_batch=8, max_waiting=12
        )
        tasks = [asyncio.ensure_future(batcher.ask(np.full((1, 2), float(i)))) for i in range(1)]
        await until(lambda: slow.sizes == [1])
        tasks += [asyncio.ensure_future(batcher.ask(np.full((3, 2), i + 1.0))) for i in range(4)]
        await asyncio.sleep(0.01)
        with pytest.raises(Busy):
            await batcher.ask(np.zeros((1, 2)))
        tasks[2].cancel()
        slow.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert slow.sizes == [1, 8, 8]  # 2 x 3 samples, padded, twice
        for i, answer in enumerate(answers):
            if i != 2:
                assert np.array_equal(answer.outputs, np.full((3 if i else 1, 2), 2.0 * i))
        batcher.close()

    asyncio.run(go())


def test_a_model_that_fails_fails_its_request_alone(tmp_path_factory):
    def sometimes(params, model_state, inputs):
        if inputs[0, 0] < 0:
            raise FloatingPointError("bad")
        return inputs

    async def go():
        batcher = Batcher(Replica(open_log(str(log_of(tmp_path_factory)))), sometimes)
        with pytest.raises(FloatingPointError):
            await batcher.ask(np.full((1, 2), -1.0))
        answer = await batcher.ask(np.ones((1, 2)))
        assert np.array_equal(answer.outputs, np.ones((1, 2)))
        batcher.close()

    asyncio.run(go())


def test_no_batch_mixes_two_versions(tmp_path):
    """Requests all through a series of swaps; each answer is exactly that of its version."""
    run, wanted = Run(tmp_path), {}
    wanted[0] = expected(run, X)

    async def go():
        async with serving(tmp_path) as client:
            seen = set()
            for version in range(1, 16):
                run.publish()
                wanted[version] = expected(run, X)
                for _ in range(6):
                    answer = (await client.post("/predict", json={"inputs": X.tolist()})).json()
                    assert np.array_equal(np.float32(answer["outputs"]), wanted[answer["version"]])
                    seen.add(answer["version"])
            assert len(seen) > 3

    asyncio.run(go())


def test_whatever_fails_while_following_is_told_and_tried_again(tmp_path, monkeypatch):
    run, advance, full = Run(tmp_path), Replica.advance, [False]

    def failing(self):
        if full[0]:
            raise MemoryError("no more of it")
        return advance(self)

    monkeypatch.setattr(Replica, "advance", failing)

    async def go():
        async with serving(tmp_path) as client:
            full[0] = True
            run.publish()
            error = ""
            while "no more of it" not in error:
                await asyncio.sleep(0.02)
                error = (await client.get("/version")).json()["last_error"] or ""
            full[0] = False
            await until(lambda: client.replica.version == 1)
            assert (await client.get("/healthz")).status_code == 200

    asyncio.run(asyncio.wait_for(go(), 30))
