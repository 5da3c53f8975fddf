"""What every experiment writes: its result, and where and how that came about."""

import datetime
import json
import os
import pathlib
import subprocess
from typing import Any

import jax


def save(folder: str, name: str, result: dict[str, Any]) -> None:
    """Writes a result as JSON and prints it."""
    write(folder, name, result)
    print(json.dumps(result, indent=1))


def write(folder: str, name: str, result: dict[str, Any]) -> None:
    """Writes a result as JSON."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(json.dumps(result, indent=1) + "\n")


def conditions(command: str) -> dict[str, Any]:
    """Where and how a result came about, for the file that holds it."""
    import flax
    import optax

    return {
        "command": command,
        "device": f"{jax.default_backend()} {jax.devices()[0].device_kind}",
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__},
    }


def stamp() -> dict[str, Any]:
    """When and on what a row came about, for the row itself: files grow over days."""
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=pathlib.Path(__file__).parent,
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    where = conditions("")
    return {
        "commit": head,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": where["device"],
        "threads": len(os.sched_getaffinity(0)),
        "versions": where["versions"],
    }
