"""What a run does whose log cannot be written for a while, and what it keeps of its log."""

import json
import threading

import jax
import pytest

from cdl_jax import cli
from cdl_jax.deploy import Replica, open_log
from cdl_jax.deploy.store_log import StoreLog
from cdl_jax.train.records import Records
from tests.deploy.test_outbox import Broken
from tests.train.small import metrics, same_lineage
from tests.train.test_resume import assert_same, remains

QUICK = {
    "initial_samples": 128, "epochs": 1, "limit": 80, "trigger": 8, "batch_size": 32,
    "snapshot_every": 4, "digest_every": 0, "checkpoint_every": 3, "model": "mlp",
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("standard_promotion")


def train(path, **changes):
    """The exit status of `cdl-jax train`."""
    settings = {**QUICK, "log": path / "log", "run": path / "run", **changes}
    return cli.main(["train", *(f"--{k.replace('_', '-')}={v}" for k, v in settings.items())])


def ends_with_the_trainers_digest(path):
    replica = Replica(open_log(str(path / "log")))
    replica.catch_up()
    summary = json.loads((path / "run" / "summary.json").read_text())
    return (replica.version, replica.full_digest()) == (summary["versions"], summary["digest"])


def after(patch, actions):
    """Calls each action once the run has recorded its version."""
    line = Records.line

    def acting(self, record):
        line(self, record)
        actions.get(record["version"], int)()

    patch.setattr(Records, "line", acting)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    with jax.numpy_dtype_promotion("standard"):
        assert train(path) == 0
    return path


@pytest.fixture
def tries(monkeypatch):
    """The versions of all updates that were tried to write."""
    append, out = StoreLog.append, []

    def noted(self, version, blob, owner):
        out.append(version)
        append(self, version, blob, owner)

    monkeypatch.setattr(StoreLog, "append", noted)
    return out


STOP = {"on_log_failure": "stop"}
WAIT = {"on_log_failure": "wait", "log_patience": 0.2}
GO_ON = {"on_log_failure": "go_on", "log_patience": 0.2}


@pytest.mark.parametrize(
    ("policy", "trained"), [(STOP, 5), (WAIT, 5), (GO_ON, 10), (GO_ON | {"log_memory": 0}, 5)]
)
def test_a_run_that_lost_its_log_ends_in_one_sentence_and_goes_on_by_the_same_command(
    tmp_path, monkeypatch, capsys, whole, tries, policy, trained
):
    same_lineage(whole, tmp_path)
    broken = Broken(tmp_path / "log")
    with monkeypatch.context() as patch:
        after(patch, {5: broken.__enter__})
        assert train(tmp_path, **policy) == 1
    broken.__exit__()
    error = capsys.readouterr().err
    sentence = error.splitlines()[-1]
    assert sentence.startswith("cdl-jax: cannot write ")
    assert "versions from 6 on are not in the log: mend the store" in sentence
    assert "Traceback" not in error
    assert len(metrics(tmp_path)) == trained
    assert tries.count(6) in (range(1, 2) if policy == STOP else range(2, 12))
    log = open_log(str(tmp_path / "log"))
    replica, undisturbed = Replica(log), Replica(open_log(str(whole / "log")), at=5)
    replica.catch_up()
    assert (log.head(), replica.full_digest()) == (5, undisturbed.full_digest())
    assert train(tmp_path, **policy) == 0
    assert_same(remains(tmp_path), remains(whole))


def test_wait_pauses_until_the_log_is_back(tmp_path, monkeypatch, whole, tries):
    same_lineage(whole, tmp_path)
    broken = Broken(tmp_path / "log")
    mend = threading.Timer(0.5, broken.__exit__)
    after(monkeypatch, {5: lambda: (broken.__enter__(), mend.start())})
    assert train(tmp_path, on_log_failure="wait") == 0
    mend.join()
    paused = [x["acknowledged_at"] - x["made_at"] > 0.3 for x in metrics(tmp_path)]
    assert paused[5]
    assert not all(paused)
    assert tries == sorted(tries)
    assert ends_with_the_trainers_digest(tmp_path)
    assert_same(remains(tmp_path), remains(whole))


def test_go_on_trains_meanwhile_and_publishes_in_order_later(tmp_path, monkeypatch, whole, tries):
    same_lineage(whole, tmp_path)
    broken = Broken(tmp_path / "log")
    mend = threading.Timer(0.3, broken.__exit__)
    after(monkeypatch, {5: broken.__enter__, 8: mend.start})
    assert train(tmp_path, on_log_failure="go_on") == 0
    mend.join()
    acknowledged = ["acknowledged_at" in x for x in metrics(tmp_path)]
    assert acknowledged[:8] == [True] * 5 + [False] * 3
    assert tries == sorted(tries)
    assert ends_with_the_trainers_digest(tmp_path)
    assert_same(remains(tmp_path), remains(whole))


@pytest.mark.parametrize(
    ("limits", "oldest"),
    [({"keep_versions": 10}, 20), ({"keep_seconds": 1e-6}, 30), ({"keep_bytes": 1_200_000}, 28)],
)
def test_a_run_trims_its_oldest_versions(tmp_path, limits, oldest):
    assert train(tmp_path, limit=240, **limits) == 0
    log = open_log(str(tmp_path / "log"))
    assert (log.oldest(), log.head()) == (oldest, 30)
    assert [v for v in range(1, 31) if log.read(v)] == list(range(oldest + 1, 31))
    assert log.snapshots() == [v for v in (20, 24, 28, 30) if v >= oldest]
    assert ends_with_the_trainers_digest(tmp_path)
    followed = Replica(log, at=oldest)
    followed.pin(None)
    followed.catch_up()
    assert followed.full_digest() == Replica(log).full_digest()
