"""Runs of `cdl-jax train` as processes, kept by their settings: a finished one is not run again."""

import hashlib
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax

FOLDER = pathlib.Path("runs")


def train(**settings: Any) -> dict[str, Any]:
    """The summary of a run with these settings of `TrainConfig`, run now or before."""
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = FOLDER / f"{settings['dataset']}-{settings['strategy']}-{name}"
    summary = folder / "summary.json"
    if not summary.exists():
        words = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
        command = [sys.executable, "-m", "cdl_jax.cli", "train", *words, f"--run={folder}"]
        status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
        if status:  # the run has said why
            raise SystemExit(status)
    return json.loads(summary.read_text())


def save(folder: str, name: str, result: dict[str, Any]) -> None:
    """Writes a result as JSON and prints it."""
    text = json.dumps(result, indent=1) + "\n"
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(text)
    print(text, end="")


def conditions(command: str) -> dict[str, Any]:
    """Where and how a result came about, for the file that holds it."""
    import flax
    import optax

    return {
        "command": command,
        "device": f"{jax.default_backend()} {jax.devices()[0].device_kind}",
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__},
    }
