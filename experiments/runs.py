"""What every experiment writes: its result, and where and how that came about."""

import json
import pathlib
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
