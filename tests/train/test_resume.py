"""A run that is stopped anywhere goes on to the same bytes, or says why it does not."""

import functools
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from cdl_jax.deploy import Replica, open_log
from cdl_jax.errors import CheckpointError, LogError
from cdl_jax.train import TrainConfig, beginning, job, resume
from cdl_jax.train.checkpoint import Checkpoints
from cdl_jax.train.records import Records
from tests.train import small
from tests.train.small import crash, same_lineage

QUICK = TrainConfig(
    initial_samples=128, epochs=1, limit=80, trigger=8, batch_size=32, density=0.01,
    snapshot_every=4, digest_every=0, checkpoint_every=3,
)  # fmt: skip
go = functools.partial(small.go, QUICK)
pytestmark = pytest.mark.usefixtures("standard_promotion", "a_drift_every_31_versions")
CLOCKS = ("first_at", "full_at", "made_at", "acknowledged_at")


def remains(path):
    saved = Checkpoints(path / "run" / "checkpoints" / "newest").newest()
    arrays = {name: (x.dtype, x.shape, x.tobytes()) for name, x in saved.arrays.items()}
    arrays.pop("state/key", None)
    progress = dict(saved.record["progress"])
    progress["summary"] = {k: v for k, v in progress["summary"].items() if k != "seconds"}
    progress.pop("metrics_bytes")
    rows = [json.loads(x) for x in (path / "run" / "metrics.jsonl").read_text().splitlines()]
    objects = {
        str(p.relative_to(path / "log")): p.read_bytes()
        for p in (path / "log").rglob("*")
        # The status is for people, and written when a second has passed.
        if p.is_file() and "owner" not in p.parts and p.name != "status.json"
    }
    metrics = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]
    return {"arrays": arrays, "progress": progress, "metrics": metrics, "log": objects}


def assert_same(found, expected):
    for part, values in expected.items():
        assert found[part] == values, part


DRIFTING = {
    "on_drift": "share+window+density+reset", "detector": "accuracy",
    "drift_samples": 32, "drift_window": 32, "label_delay": 12, "history": "inverse_use",
    "limit": 280, "checkpoint_every": 33,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, a_drift_every_31_versions):
    path = tmp_path_factory.mktemp("whole")
    with jax.numpy_dtype_promotion("standard"):
        go(path, **DRIFTING)
    return path


def test_a_run_that_stopped_makes_the_same_bytes(tmp_path, monkeypatch, whole):
    """Stopped while it answers a drift, by another program, with labels that are still to come."""
    rows = remains(whole)["metrics"]
    found = [row["version"] for row in rows if row.get("drift")]
    assert found == [31]  # the detector, which finds one at once, waits for 30 versions
    entries = [row["entries"] for row in rows]
    assert entries[30:35] == [entries[0]] * 2 + [entries[32]] * 3
    assert entries[32] > 8 * entries[0]  # two versions later, for the rest of 32 samples
    same_lineage(whole, tmp_path)
    crash(monkeypatch, 34, lambda: go(tmp_path, **DRIFTING))
    log = open_log(str(tmp_path / "log"))
    assert log.head() == 34
    begun = []
    monkeypatch.setattr(beginning, "fit", lambda *a, **k: begun.append(1))
    go(tmp_path, **DRIFTING)
    assert not begun  # initial training is not done again
    assert_same(remains(tmp_path), remains(whole))


def test_what_a_checkpoint_cannot_go_on_to_is_refused(tmp_path, monkeypatch, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = remains(tmp_path)
    with pytest.raises(CheckpointError, match=r"another configuration \(density is 0.02 here"):
        go(tmp_path, **DRIFTING, density=0.02)
    with monkeypatch.context() as patch:
        patch.setattr(resume, "FORM", resume.FORM + 1)
        with pytest.raises(CheckpointError, match="have form 3, this cdl_jax reads 4"):
            go(tmp_path, **DRIFTING, new_lineage=True)
    with pytest.raises(CheckpointError, match="does not hold version 35"):
        go(tmp_path, **DRIFTING, log=str(tmp_path / "new"))
    (tmp_path / "log" / "updates" / "000000000035").write_bytes(
        (tmp_path / "log" / "updates" / "000000000034").read_bytes()
    )
    with pytest.raises(CheckpointError, match="leads to another model than the checkpoint"):
        go(tmp_path, **DRIFTING)
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert remains(tmp_path)["metrics"] == before["metrics"]
    shutil.copy(whole / "log" / "updates" / "000000000035", tmp_path / "log" / "updates")
    lines, stops = metrics.read_text(), (tmp_path / "run" / "triggers.txt").read_text()
    for content, words in [
        (lines[:300], "has 300 bytes, at version 35 it had"),
        (lines.replace('"version": 2', '"version":x2', 1), "line 2 of .*/metrics.jsonl is no"),
        (lines.replace('"samples"', '"simples"', 1), "line 1 of .*/metrics.jsonl is no version's"),
        (None, "has 0 bytes, at version 35 it had"),
    ]:
        metrics.unlink(missing_ok=True)
        if content is not None:
            metrics.write_text(content)
        with pytest.raises(CheckpointError, match=words + ".*: it was changed; give a new --run"):
            go(tmp_path, **DRIFTING)
    metrics.write_text(lines)
    for line in ("x\n", "36 3 1\n", "\0\0\0\n"):
        (tmp_path / "run" / "triggers.txt").write_text(stops + line)
        with pytest.raises(CheckpointError, match="triggers.txt has a line that is not VERSION ST"):
            go(tmp_path, **DRIFTING)


def test_another_program_is_refused_whatever_differs(tmp_path, whole):
    saved = Checkpoints(whole / "run" / "checkpoints" / "newest").newest()
    log, mine = open_log(str(whole / "log")), job.program()
    assert saved.record["program"] == log.manifest().program == mine
    writer = SimpleNamespace(folder=tmp_path)
    for name, its in mine.items():
        writer.facts = saved.record | {"program": mine | {name: "another"}}
        words = re.escape(f"another program ({name} is 'another' here, {its!r} there); give a new")
        with pytest.raises(CheckpointError, match=words + ".*, or --new-lineage and a new --log"):
            resume.check_same(saved, QUICK, writer)


def test_what_makes_another_program_is_noticed(monkeypatch, whole):
    """A variable of the environment, a setting of JAX, and the form of the steps."""
    with monkeypatch.context() as patch:
        patch.setenv("NPROC", "77")
        with pytest.raises(CheckpointError, match=r"\(threads is 77 here, \d+ there\)"):
            go(whole, **DRIFTING)
        with pytest.raises(LogError, match=r"another program \(threads is 77 here, \d+ there\)"):
            go(whole, **DRIFTING, new_lineage=True)  # on the old log
    partitionable = "jax_threefry_partitionable is False here, True there"
    with jax.threefry_partitionable(False), pytest.raises(CheckpointError, match=partitionable):
        go(whole, **DRIFTING)
    changes = DRIFTING | {"scan": 4, "on_drift": ""}
    with pytest.raises(CheckpointError, match="form is 'scan' here, 'jit' there"):
        go(whole, **changes)


def test_a_new_lineage_goes_on_from_the_checkpoint_in_a_log_of_its_own(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    changes = DRIFTING | {"learning_rate": 1e-4, "limit": 296, "new_lineage": True}
    summary = go(tmp_path, **changes, log=str(tmp_path / "new"))
    old, new = open_log(str(whole / "log")), open_log(str(tmp_path / "new"))
    assert (new.newest_snapshot(), new.head(), new.read(35)) == (37, 37, None)
    assert new.manifest().lineage != old.manifest().lineage
    replica = Replica(new)
    assert replica.full_digest() == summary.digest
    assert [r["version"] for r in remains(tmp_path)["metrics"]] == list(range(1, 38))


def test_a_new_lineage_cuts_the_stream_by_its_own_settings(tmp_path, monkeypatch):
    crash(monkeypatch, 5, lambda: go(tmp_path))  # behind the checkpoint of version 3
    new = {"trigger": 4, "batch_size": 16, "new_lineage": True, "log": str(tmp_path / "new")}
    crash(monkeypatch, 8, lambda: go(tmp_path, **new, limit=60, checkpoint_every=0))
    log = open_log(str(tmp_path / "new"))
    blobs = [log.read(v) for v in range(4, 9)]
    stops = (tmp_path / "run" / "triggers.txt").read_text()
    summary = go(tmp_path, **new, limit=60, checkpoint_every=0)
    assert [log.read(v) for v in range(4, 9)] == blobs
    assert (tmp_path / "run" / "triggers.txt").read_text().startswith(stops)
    assert [row["samples"] for row in small.metrics(tmp_path)] == [8] * 3 + [4] * 9
    assert (summary.samples, summary.versions) == (60, 12)


def test_a_new_lineage_may_be_shorter_than_what_the_old_one_had_taken(tmp_path, monkeypatch):
    crash(monkeypatch, 5, lambda: go(tmp_path))
    summary = go(tmp_path, limit=24, new_lineage=True, log=str(tmp_path / "new"))
    assert (summary.samples, summary.versions) == (24, 3)


def test_a_replay_reads_when_the_time_trigger_fired(tmp_path, monkeypatch):
    timed = {"trigger_seconds": 0.2, "pace": 100.0, "digest_every": 0}
    crash(monkeypatch, 2, lambda: go(tmp_path, **timed))
    stops = (tmp_path / "run" / "triggers.txt").read_text().splitlines()
    log = open_log(str(tmp_path / "log"))
    blobs = [log.read(v) for v in range(1, log.head() + 1)]
    with (tmp_path / "run" / "triggers.txt").open("a") as file:
        file.write("9")  # cut short by a kill
    summary = go(tmp_path, **timed)
    assert (tmp_path / "run" / "triggers.txt").read_text().splitlines()[: len(stops)] == stops
    assert [log.read(v) for v in range(1, len(blobs) + 1)] == blobs
    assert summary.samples == 80
    samples = [row["samples"] for row in remains(tmp_path)["metrics"]]
    assert sum(samples) == 80
    assert max(samples) <= 32


def test_a_replay_reads_them_where_no_checkpoint_was_written_to_its_end(tmp_path, monkeypatch):
    timed = {"trigger_seconds": 0.2, "pace": 100.0, "checkpoint_every": 0}
    crash(monkeypatch, 2, lambda: go(tmp_path, **timed))
    log = open_log(str(tmp_path / "log"))
    blobs = [log.read(v) for v in range(1, log.head() + 1)]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "newest" / "0")
    go(tmp_path, **timed | {"pace": 160.0})
    assert len(blobs) >= 2
    assert [log.read(v) for v in range(1, len(blobs) + 1)] == blobs
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    go(tmp_path, **timed | {"pace": None}, log=str(tmp_path / "new"))  # has no versions yet
    assert remains(tmp_path)["metrics"][0]["samples"] == 32


def flip(folder):
    """One bit of a checkpoint's largest file."""
    file = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "run" / "checkpoints" / "newest"
    assert sorted(p.name for p in newest.iterdir()) == ["33", "35"]
    flip(newest / "35")
    go(tmp_path, **DRIFTING)
    assert "/newest/35 is damaged (its digest is another); going on from version 33\n" in (
        capsys.readouterr().err
    )
    assert_same(remains(tmp_path), remains(whole))
    shutil.rmtree(newest / "33")
    flip(newest / "35")
    with pytest.raises(CheckpointError, match="35 is damaged .*/newest: delete it, and start the"):
        go(tmp_path, **DRIFTING)


def test_the_metrics_are_read_line_by_line_up_to_the_checkpoint(tmp_path, monkeypatch):
    """A run may have millions of them."""
    records = Records(str(tmp_path))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"{}\n" * 1000 + b"half a li")
    lines = records.lines(1000, 2000 * 3 // 2 - 1)
    assert next(lines) == b"{}\n"
    assert [len(x) for x in lines] == [3] * 998 + [2]
    monkeypatch.setattr(json, "loads", lambda line: dict.fromkeys(resume._WATCHED, line))
    read = []
    found = resume.parsed((read.append(x) or x for x in (b"a", b"b", b"c")), "run")
    assert next(found)["version"] == b"a"
    assert read == [b"a"]


@pytest.mark.parametrize(("history", "size"), [("reservoir", 40), ("balanced", 1)])
def test_a_new_lineage_may_draw_otherwise(tmp_path, whole, history, size):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    changes = DRIFTING | {"history": history, "history_size": size, "limit": 296}
    go(tmp_path, **changes, new_lineage=True, log=str(tmp_path / "new"))
    sampler = Checkpoints(tmp_path / "run" / "checkpoints" / "newest").newest().under("sampler")
    places = {"reservoir": {"kept": 40, "seen": 1}, "balanced": {"labels": 128 + 296}}[history]
    assert {name: len(x) for name, x in sampler.items()} == places
    assert sampler.get("seen", [128 + 296])[0] == 128 + 296


def test_killed_runs_leave_what_one_never_killed_leaves(tmp_path):
    """The short form of `make resume-faults`."""
    script = (
        "import pathlib, sys; from experiments.resume_faults import campaign;"
        "out = campaign(2, 1, pathlib.Path(sys.argv[1]), settings=['inverse_use']);"
        "print(out); sys.exit(out['equal'] != 2 or out['kills'] < 2)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
