import subprocess
import time

import pytest

from cdl_jax.train import provenance
from cdl_jax.train.provenance import made_by


def git(folder, *words):
    name = ("-c", "user.name=n", "-c", "user.email=e@x")
    out = subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True)
    return out.stdout.decode().strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A repository with this package in it, in which the command runs."""
    folder = tmp_path / "repo" / "cdl_jax" / "train"
    folder.mkdir(parents=True)
    (folder / "provenance.py").write_text("1\n")
    (tmp_path / "repo" / "other.py").write_text("1\n")
    git(tmp_path / "repo", "init", "-q")
    git(tmp_path / "repo", "add", ".")
    git(tmp_path / "repo", "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "_OWN", folder / "provenance.py")
    monkeypatch.chdir(tmp_path / "repo")
    return tmp_path / "repo"


def test_the_commit_is_the_packages(package):
    made, commit = made_by(), git(package, "rev-parse", "HEAD")
    assert (made["commit"], made["dirty"]) == (commit, False)
    assert made["working_folder"] == {"path": str(package), "commit": commit, "dirty": False}
    assert {"python", "jax", "numpy", "cdl_jax"} <= set(made["versions"])


def test_what_was_not_committed_is_told(package):
    (package / "other.py").write_text("2\n")
    assert (made_by()["dirty"], made_by()["working_folder"]["dirty"]) == (False, True)
    (package / "other.py").write_text("1\n")
    (package / "cdl_jax" / "new.py").write_text("1\n")
    assert (made_by()["dirty"], made_by()["working_folder"]["dirty"]) == (True, False)


def test_a_repository_that_only_surrounds_the_package_is_not_its_own(package, monkeypatch):
    installed = package / ".venv" / "cdl_jax" / "train" / "provenance.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("1\n")
    (package / ".gitignore").write_text(".venv\n")
    monkeypatch.setattr(provenance, "_OWN", installed)
    made = made_by()
    assert (made["commit"], made["dirty"]) == ("", None)
    assert made["working_folder"]["commit"] == git(package, "rev-parse", "HEAD")


def test_no_git_and_no_repository_are_no_error(package, monkeypatch, tmp_path):
    bare = tmp_path / "bare" / "cdl_jax" / "train"
    bare.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "_OWN", bare / "provenance.py")
        patch.chdir(bare)
        made = made_by()
        assert (made["commit"], made["dirty"]) == ("", None)
        assert made["working_folder"] == {"path": str(bare), "commit": "", "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (made_by()["commit"], made_by()["dirty"]) == ("", None)


def test_a_git_that_hangs_is_not_waited_for(package, monkeypatch, tmp_path):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:/usr/bin:/bin")
    monkeypatch.setattr(provenance, "_SECONDS", 0.1)
    began = time.monotonic()
    made = made_by()
    assert (made["commit"], made["dirty"]) == ("", None)
    assert made["working_folder"] == {"path": str(package), "commit": "", "dirty": None}
    assert time.monotonic() - began < 10
