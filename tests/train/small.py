"""Short runs in a folder of the test's, whole or ended by a crash."""

import dataclasses
import json
import shutil

import pytest

from cdl_jax.train import run
from cdl_jax.train.records import Records


class Crash(BaseException):
    pass


def go(config, path, source=None, **changes):
    """A run with its log and records under `path`."""
    places = {"log": str(path / "log"), "run": str(path / "run")}
    return run(dataclasses.replace(config, **{**places, **changes}).checked(), source)


def crash(monkeypatch, version, life):
    """Ends a run behind the log's append of a version, in the middle of its line of metrics."""
    line = Records.line

    def crashing(self, record):
        if record["version"] == version:
            self._lines.write('{"version": 7, "half')
            raise Crash
        line(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "line", crashing)
        with pytest.raises(Crash):
            life()


def same_lineage(path, other):
    """Gives a log yet to be begun the first record of another: it holds a random number."""
    (other / "log").mkdir(parents=True)
    shutil.copy(path / "log" / "log.json", other / "log")


def metrics(path):
    """The records of a run."""
    return [json.loads(x) for x in (path / "run" / "metrics.jsonl").read_text().splitlines()]
