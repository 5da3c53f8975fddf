"""The fault campaign in short, in a process of its own, since it forks."""

import json
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_a_short_campaign_fails_nowhere_and_breaks_things(tmp_path):
    words = [
        "-m",
        "experiments.deploy.faults",
        "--first",
        "1070",
        "--out",
        str(tmp_path),
        "--go-on",
    ]
    for runs in ("2", "7"):
        done = subprocess.run(
            [sys.executable, *words, "--runs", runs],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads((tmp_path / "faults.json").read_text())
    assert (result["runs"], result["failures"]) == (7, [])
    assert result["faults_in_all"] > 20
    assert len(result["faults"]) > 6
    if shutil.which("redis-server"):
        assert any(kind.startswith("broker") for kind in result["faults"])
