"""What every experiment writes: its result, and where and how that came about."""

import json
import pathlib
from typing import Any

import jax


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
