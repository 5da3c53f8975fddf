"""What a life of a run was made by: the versions of the packages, and the commits of the code."""

import importlib.metadata
import pathlib
import platform
import shutil
import subprocess
import time
from typing import Any

_PACKAGES = ("cdl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_OWN = pathlib.Path(__file__)
_SECONDS = 2.0  # that git may take
# Without locks: somebody may be committing at this moment.
_GIT = ("git", "--no-optional-locks")
_STATUS = ("status", "--porcelain=v2", "--branch")


def made_by() -> dict[str, Any]:
    """The time, the versions, and the commits of this package and of the working folder.

    `dirty` says whether something was not committed: in this package's folder any file, in the
    working folder's repository those that git knows. `commit` is "" and `dirty` None where there
    is no git, no repository, or this package is no part of the one around it.
    """
    cwd, folder = pathlib.Path.cwd(), _OWN.parent.parent
    known, package, around = [
        _started(("ls-files", "--error-unmatch", str(_OWN)), folder),
        _started((*_STATUS, "--", str(folder)), folder),
        _started((*_STATUS, "--untracked-files=no"), cwd),
    ]
    ours, its, theirs = _answer(known) is not None, _answer(package), _answer(around)
    return {
        "began": time.time(),
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in _PACKAGES}},
        **_commit(its if ours else None),
        "working_folder": {"path": str(cwd), **_commit(theirs)},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _started(words: tuple[str, ...], folder: pathlib.Path) -> "subprocess.Popen[str] | None":
    """Git at work, beside the other calls; None where it is not installed."""
    if shutil.which("git") is None:
        return None
    return subprocess.Popen(
        [*_GIT, *words], cwd=folder, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _answer(git: "subprocess.Popen[str] | None") -> str | None:
    """What git said; None where it failed, or took too long."""
    if git is None:
        return None
    try:
        out = git.communicate(timeout=_SECONDS)[0]
    except subprocess.TimeoutExpired:
        git.kill()
        git.communicate()
        return None
    return out if git.returncode == 0 else None


def _commit(status: str | None) -> dict[str, Any]:
    lines = (status or "").splitlines()
    heads = [x.removeprefix("# branch.oid ") for x in lines if x.startswith("# branch.oid ")]
    commit = heads[0] if heads and heads[0] != "(initial)" else ""
    dirty = None if status is None else any(not line.startswith("#") for line in lines)
    return {"commit": commit, "dirty": dirty}
