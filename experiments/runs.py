"""What every experiment writes: its result, and where and how that came about."""

import datetime
import json
import os
import pathlib
from typing import Any

import jax

from cdl_jax.train.provenance import made_by


def save(folder: str, name: str, result: dict[str, Any]) -> None:
    """Writes a result as JSON and prints it."""
    write(folder, name, result)
    print(json.dumps(result, indent=1))


def write(folder: str, name: str, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    path = pathlib.Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{name}.part")
    draft.write_text(json.dumps(result, indent=1) + "\n")
    draft.replace(path)


def conditions(command: str) -> dict[str, Any]:
    """Where and how a result came about, for the file that holds it."""
    import flax
    import optax

    return {
        "command": command,
        "device": f"{jax.default_backend()} {jax.devices()[0].device_kind}",
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__},
    }


def code() -> dict[str, Any]:
    """The package's commit, and what was not committed: in it, and in the working folder.

    The latter counts results that a campaign has rewritten, too.
    """
    made = made_by()
    return {
        "commit": made["commit"],
        "dirty": made["dirty"],
        "working_folder_dirty": made["working_folder"]["dirty"],
    }


def stamp() -> dict[str, Any]:
    """When and on what a row came about, for the row itself: files grow over days."""
    where = conditions("")
    return {
        **code(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": where["device"],
        "threads": len(os.sched_getaffinity(0)),
        "versions": where["versions"],
    }
