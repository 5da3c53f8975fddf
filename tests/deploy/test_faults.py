"""The fault campaign in short, in a process of its own, since it forks."""

import json
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_a_short_campaign_fails_nowhere_and_breaks_things(tmp_path):
    command = [sys.executable, "-m", "experiments.deploy.faults", "--runs", "7", "--first", "1000"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads((tmp_path / "faults.json").read_text())
    assert (result["runs"], result["failures"]) == (7, [])
    assert result["faults_in_all"] > 20
    assert len(result["faults"]) > 6
    if shutil.which("redis-server"):
        assert any(kind.startswith("broker") for kind in result["faults"])
