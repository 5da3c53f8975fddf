import os
import signal
import subprocess
import sys

import pytest

from cdl_jax.errors import ConfigError
from cdl_jax.train import TrainConfig, run
from cdl_jax.train.lock import locked

HOLD = """
import sys, time
from cdl_jax.train.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_folder_in_use_is_refused_until_its_process_is_dead(tmp_path):
    folder = str(tmp_path / "run")
    held = [sys.executable, "-c", HOLD, folder]
    with subprocess.Popen(held, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        half_written = tmp_path / "run" / "checkpoints" / "newest" / "4.orbax-checkpoint-tmp"
        half_written.mkdir(parents=True)
        words = f"{folder} is in use by process {other.pid} on .*; wait for its end, or give anoth"
        with pytest.raises(ConfigError, match=words):
            run(TrainConfig(initial_samples=128, epochs=1, run=folder).checked())
        assert half_written.exists()
        os.kill(other.pid, signal.SIGKILL)
    with locked(folder):
        assert (tmp_path / "run" / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="cannot make the run folder .*/file/run"),
        locked(str(tmp_path / "file" / "run")),
    ):
        pass
