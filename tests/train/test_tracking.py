import dataclasses
import functools
import json
import sys
import types

import numpy as np
import pytest

from cdl_jax.errors import CheckpointError, ConfigError
from cdl_jax.train import TrainConfig, tracking
from cdl_jax.train.records import Records
from cdl_jax.train.tracking import TRACKERS, Place, Trackers, check_installed, numbers, tracker
from tests.train import small

RECORD = {
    "version": 3, "loss": 0.5, "skipped": False, "full_digest": "ab", "metrics": {"f1": 0.2},
    "prequential_loss": None, "worst": float("nan"),
}  # fmt: skip
NUMBERS = {"loss": 0.5, "skipped": 0.0, "metrics/f1": 0.2}
QUICK = TrainConfig(
    model="mlp", initial_samples=64, epochs=1, limit=48, trigger=8, batch_size=32, density=0.05,
    digest_every=0, checkpoint_every=4,
)  # fmt: skip


@pytest.fixture
def twice(tmp_path, monkeypatch, standard_promotion):
    """Runs a training with a tracker that dies in its sixth version, and goes on behind the 4th."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, label=(x[:, 0] > 0).astype(int))
    config = dataclasses.replace(QUICK, dataset=f"numpy:{tmp_path}/d.npz")
    go = functools.partial(small.go, config, tmp_path)

    def lives(name):
        small.crash(monkeypatch, 6, lambda: go(track=name))
        summary = go(track=name, limit=64)  # a setting that may change
        assert summary.versions == 8
        return tmp_path / "run"

    return lives


def place(folder, **changes):
    return Place(folder, {"seed": 1}, **changes)


def test_numbers_are_what_can_be_drawn():
    assert numbers(RECORD) == NUMBERS


def events(folder):
    """The events in the files that tensorboardX wrote, the oldest file first."""
    from tensorboardX.proto import event_pb2

    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        blob, at = path.read_bytes(), 0
        while at < len(blob):
            size = int.from_bytes(blob[at : at + 8], "little")
            yield event_pb2.Event.FromString(blob[at + 12 : at + 12 + size])
            at += 12 + size + 4


def test_tensorboard_files_hold_every_version(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = tracker("tensorboard", place(tmp_path, version=4))
    for version in (5, 6):
        writer.log(version, {"loss": version / 2})
    writer.close()
    seen = list(events(tmp_path / "tensorboard"))
    starts = [event.step for event in seen if event.HasField("session_log")]
    assert starts == [5]  # what an earlier life wrote from there on is not shown
    values = [(e.step, v.tag, v.simple_value) for e in seen for v in e.summary.value if e.step]
    assert values == [(5, "loss", 2.5), (6, "loss", 3.0)]


def test_a_whole_run_on_tensorboard_and_what_a_kill_left_is_purged(twice):
    pytest.importorskip("tensorboardX")
    folder, shown = twice("tensorboard"), {}
    for event in events(folder / "tensorboard"):
        if event.HasField("session_log"):
            shown = {step: x for step, x in shown.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == "accuracy":
                assert event.step not in shown
                shown[event.step] = value.simple_value
    lines = small.metrics(folder.parent)
    assert shown == pytest.approx({line["version"]: line["accuracy"] for line in lines})


@pytest.mark.filterwarnings("ignore")
def test_a_whole_run_on_weights_and_biases(twice, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--log=redis://:hunter2@h/s"])
    files = sorted(twice("wandb").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # for `wandb sync`, which puts them together
    assert len({path.name for path in files}) == 1  # by the run's id
    steps = [step for path in files for step in wandb_steps(path)]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(b"hunter2" not in path.read_bytes() for path in files)


def wandb_steps(path):
    """The steps in a file of W&B's: protobuf records in the log format of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    blob, at, parts = path.read_bytes(), 7, b""
    while at < len(blob):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(blob[at + 4 : at + 6], "little"), blob[at + 6]
        parts += blob[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(parts)
            if record.HasField("history"):
                yield record.history.step.num
            parts = b""


@pytest.mark.filterwarnings("ignore")  # of the many packages that it imports
def test_a_whole_run_on_mlflow(twice, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = twice("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.data.params["limit"]) == ("run", "48")
    history = client.get_metric_history(run.info.run_id, "accuracy")
    lines = {line["version"]: line["accuracy"] for line in small.metrics(folder.parent)}
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == list(lines.items())


def test_weights_and_biases_is_told(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(
        id="w1", log=lambda values, step: told.append((step, values)),
        finish=lambda: told.append("end"),
    )  # fmt: skip
    module = types.SimpleNamespace(init=lambda **options: told.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for run_id in (None, "w1"):
        writer = tracker("wandb", place(tmp_path, run_id=run_id))
        writer.log(3, NUMBERS)
        writer.close()
        options, *rest = told
        assert rest == [(3, NUMBERS), "end"]
        assert (options["config"], options["id"], options["resume"]) == (
            {"seed": 1}, run_id, "allow",
        )  # fmt: skip
        assert writer.run_id == "w1"
        told.clear()


def test_mlflow_is_told(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))
    module = types.SimpleNamespace(
        set_tracking_uri=told.append,
        start_run=lambda run_id, run_name: told.append((run_id, run_name)) or run,
        log_params=told.append,
        log_metrics=lambda values, step: told.append((step, values)),
        end_run=lambda: told.append("end"),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for run_id, params in ((None, [{"seed": 1}]), ("m1", [])):
        writer = tracker("mlflow", place(tmp_path, run_id=run_id))
        writer.log(3, NUMBERS)
        writer.close()
        assert told == [
            f"sqlite:///{tmp_path}/mlflow.db", (run_id, tmp_path.name), *params, (3, NUMBERS), "end"
        ]  # fmt: skip
        assert writer.run_id == "m1"
        told.clear()


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_not_installed_is_said(monkeypatch, name):
    module = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"track {name} needs more: pip install"):
        check_installed([name])


def test_what_cannot_begin_says_why(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("no key for https://me:secret@api.wandb.ai.\nmore of it")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(ConfigError, match=r"no key for https://\*\*\*@api.wandb.ai; mend that, or"):
        tracker("wandb", place(tmp_path))


def test_a_tracker_without_a_run_is_refused():
    with pytest.raises(ConfigError, match="track needs --run"):
        TrainConfig(track="tensorboard").checked()


class Fake:
    """A tracker that fails when it is told so."""

    overwrites, failing = False, ()

    def __init__(self, place):
        self.run_id, self.told = place.run_id or "r1", []
        Fake.newest = self

    def log(self, version, numbers):
        if version in self.failing:
            raise ConnectionError("the server is gone\nand more")
        self.told.append(version)

    def close(self):
        if "close" in self.failing:
            raise ConnectionError("still gone")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(TRACKERS, "fake", Fake)
    monkeypatch.setitem(tracking._PACKAGES, "fake", "json")
    monkeypatch.setattr(tracking.time, "monotonic", lambda: 0.0)
    return Fake


def test_a_failure_is_said_once_and_the_run_goes_on(tmp_path, fake, monkeypatch, capsys):
    monkeypatch.setattr(fake, "failing", (2, 3, "close"))
    trackers = Trackers(tmp_path)
    trackers.begin(["fake"], place(tmp_path), 0)
    for version in range(1, 6):
        trackers.log({"version": version})
    trackers.close()
    assert fake.newest.told == [1, 4, 5]
    said = capsys.readouterr().err
    assert said == (
        "cdl-jax: fake did not take version 2: the server is gone; the run goes on, and "
        "metrics.jsonl has all\n"
    )


def test_one_that_fails_slowly_is_left_alone_for_a_while(tmp_path, fake, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock[0])

    def log(self, version, numbers):
        self.told.append(version)
        clock[0] += 3.0
        raise ConnectionError

    monkeypatch.setattr(fake, "log", log)
    trackers = Trackers(tmp_path)
    trackers.begin(["fake"], place(tmp_path), 0)
    for version in range(1, 41):
        clock[0] += 1.0
        trackers.log({"version": version})
    assert fake.newest.told == [1, 31]


def test_a_later_life_goes_on_in_the_same_run(tmp_path, fake):
    Trackers(tmp_path).begin(["fake"], place(tmp_path), 0)
    for newest, version, told in ((6, 4, [7, 8]), (4, 4, [7, 8])):  # the second cut short at once
        trackers = Trackers(tmp_path)
        trackers.begin(["fake"], place(tmp_path, version=version), newest)
        for one in range(version + 1, 9):
            trackers.log({"version": one})
        assert (fake.newest.run_id, fake.newest.told) == ("r1", told)
    trackers.forget()
    trackers.begin(["fake"], place(tmp_path, version=4), 6)  # one that no life had before
    trackers.log({"version": 5})
    assert fake.newest.told == [5]


def test_a_resumed_run_knows_what_was_told(tmp_path, fake):
    first = Records(str(tmp_path))
    first.begin()
    for version in (1, 2):
        first.line({"version": version})
    kept = first.position()
    for version in (3, 4):
        first.line({"version": version})
    first._lines.write('{"version": 5, "ha')
    first.close()
    (tmp_path / "trackers.json").write_text(json.dumps({"fake": {"id": "r7", "told": 0}}))
    again = Records(str(tmp_path))
    again.look(2, kept)
    again.resume()
    again.track(["fake"], {})
    for version in (3, 4, 5):
        again.line({"version": version})
    again.close()
    assert (fake.newest.run_id, fake.newest.told) == ("r7", [5])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["version"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_run_killed_twice_tells_no_version_twice(tmp_path, fake):
    told, kept = [], 0
    for start, stop in ((0, 10), (4, 6), (4, 12)):
        records = Records(str(tmp_path))
        if start:
            records.look(start, kept)
            records.track(["fake"], {})
            records.resume()
        else:
            records.begin()
            records.track(["fake"], {})
        for version in range(start + 1, stop + 1):
            records.line({"version": version})
            if not start and version == 4:
                kept = records.position()
        told += fake.newest.told
        records.close()
    assert told == list(range(1, 13))


@pytest.mark.parametrize("content", ['{"fa', "[]", '{"fake": "r1"}', '{"fake": {"id": "r1"}}'])
def test_a_damaged_list_of_trackers_is_one_sentence(tmp_path, fake, content):
    (tmp_path / "trackers.json").write_text(content)
    with pytest.raises(CheckpointError, match="trackers.json does not say .* changed; remove it"):
        Trackers(tmp_path).begin(["fake"], place(tmp_path), 0)
