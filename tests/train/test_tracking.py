import json
import sys
import types

import pytest

from cdl_jax.errors import ConfigError
from cdl_jax.train.records import Records
from cdl_jax.train.tracking import TRACKERS, numbers, tracker

RECORD = {"version": 3, "loss": 0.5, "skipped": False, "full_digest": "ab", "metrics": {"f1": 0.2}}
NUMBERS = {"loss": 0.5, "skipped": 0.0, "metrics/f1": 0.2}


def test_numbers_are_what_can_be_drawn():
    assert numbers(RECORD) == NUMBERS


def test_tensorboard_files_hold_every_version(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter

    del RecordWriter
    writer = tracker("tensorboard", tmp_path, {"seed": 1})
    for version in (1, 2):
        writer.log(version, {"loss": version / 2})
    writer.close()
    blob = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    seen, at = [], 0
    while at < len(blob):
        size = int.from_bytes(blob[at : at + 8], "little")
        event = event_pb2.Event.FromString(blob[at + 12 : at + 12 + size])
        seen += [
            (event.step, v.tag, v.simple_value) for v in event.summary.value if v.tag == "loss"
        ]
        at += 12 + size + 4
    assert seen == [(1, "loss", 0.5), (2, "loss", 1.0)]


def test_weights_and_biases_is_told(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(
        log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end")
    )
    module = types.SimpleNamespace(init=lambda **options: told.append(options["config"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    writer = tracker("wandb", tmp_path, {"seed": 1})
    writer.log(3, NUMBERS)
    writer.close()
    assert told == [{"seed": 1}, (3, NUMBERS), "end"]


def test_mlflow_is_told(tmp_path, monkeypatch):
    told = []
    module = types.SimpleNamespace(
        set_tracking_uri=told.append,
        start_run=lambda run_name: told.append(run_name),
        log_params=told.append,
        log_metrics=lambda values, step: told.append((step, values)),
        end_run=lambda: told.append("end"),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    writer = tracker("mlflow", tmp_path, {"seed": 1})
    writer.log(3, NUMBERS)
    writer.close()
    assert told == [
        f"sqlite:///{tmp_path}/mlflow.db", tmp_path.name, {"seed": 1}, (3, NUMBERS), "end"
    ]  # fmt: skip


@pytest.mark.parametrize("name", TRACKERS)
def test_what_is_not_installed_is_said(tmp_path, monkeypatch, name):
    module = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"track {name} needs more: pip install"):
        tracker(name, tmp_path, {})


def test_a_run_folder_says_what_made_it(tmp_path):
    records = Records(str(tmp_path / "run"))
    records.about({"seed": 4})
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["seed"] == 4
    assert {"python", "jax", "numpy", "cdl_jax"} <= set(about["versions"])
    assert len(about["commit"]) in (0, 40)
