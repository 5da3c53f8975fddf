"""Every scheme of URL that a log can lie under."""

import os
import urllib.request

import pytest

from cdl_jax.deploy import Replica, Retention, open_log
from cdl_jax.errors import LogError, OwnershipError, StoreError
from tests.deploy.small import Run

moto = pytest.importorskip("moto.server", reason="moto, the S3 server of these tests, is missing")


@pytest.fixture(scope="module")
def endpoint():
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, request):
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"bucket-{abs(hash(request.node.name))}"
    asked = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    assert urllib.request.urlopen(asked).status == 200
    return name


def url_of(kind, tmp_path, request):
    if kind == "s3":
        return f"s3://{request.getfixturevalue('bucket')}/logs/one"
    return {"file": f"file://{tmp_path}/log", "memory": f"memory://{tmp_path}"}[kind]


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow")  # moto's
@pytest.mark.parametrize("kind", ["file", "memory", "s3"])
def test_a_log_does_the_same_under_every_scheme(kind, tmp_path, request):
    url = url_of(kind, tmp_path, request)
    run = Run(url, retention=Retention(versions=8))
    run.publish(12)
    log = open_log(url)
    assert (log.head(), log.newest_snapshot(), log.oldest()) == (12, 10, 5)
    assert (log.snapshots(), log.read(5), log.read(6)) == ([5, 10], None, run.blobs[5])
    replica = Replica(log)
    replica.catch_up()
    assert replica.full_digest() == run.digest()
    run.log.append(12, run.blobs[-1], run.owner)  # a put whose answer was lost
    with pytest.raises(LogError, match="another update already"):
        run.log.append(12, b"other", run.owner)
    with pytest.raises(OwnershipError, match="live writer"):
        log.claim(patience=0.1)
    run.owner.release()
    with log.claim(patience=0.1), pytest.raises(OwnershipError, match="took over"):
        run.log.append(13, b"late", run.owner)


def test_a_store_that_is_out_of_reach_is_one_sentence(monkeypatch, bucket):
    monkeypatch.setattr("cdl_jax.deploy.stores.RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    log = open_log(f"s3://{bucket}/x")
    for deed in (log.manifest, log.head, log.claim, lambda: log.read(1)):
        with pytest.raises(StoreError, match=r"cannot (read|claim) the log s3://") as caught:
            deed()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "variable"),
    [("s3://b/x", "AWS_ACCESS_KEY_ID"), ("gs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"),
     ("az://c/x", "AZURE_STORAGE_ACCOUNT_NAME")],
)  # fmt: skip
def test_a_cloud_without_credentials_is_refused_at_once(url, variable, monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(LogError, match=f"no credentials for {url}: set {variable}"):
        open_log(url)


def test_clouds_are_opened_with_their_credentials(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    assert open_log("az://container/x").name == "az://container/x"
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", '{"private_key": "x"}')
    with pytest.raises(LogError, match="cannot open a log at 'gs://b/x'"):
        open_log("gs://b/x")
    monkeypatch.delenv("GOOGLE_SERVICE_ACCOUNT_KEY")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    assert open_log("gs://b/x").name == "gs://b/x"


def test_a_log_in_memory_is_one_to_a_whole_process():
    first, second = open_log("memory://shared"), open_log("memory://shared")
    with first.claim(patience=0.2) as owner:
        first.append(1, b"one", owner)
    assert second.read(1) == b"one"
    assert open_log("memory://another").read(1) is None
