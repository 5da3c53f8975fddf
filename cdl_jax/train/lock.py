"""A run folder is one process's at a time."""

import contextlib
import fcntl
import os
import pathlib
import platform
from collections.abc import Iterator

from cdl_jax.errors import ConfigError


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Holds a run folder, made where it is missing; the system lets go of it for whoever is killed.

    Raises:
      ConfigError: when another process holds it, or it cannot be made.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / "lock").open("a+")
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"the run folder {folder} is in use by {file.read().strip() or 'another process'}; "
                "wait for its end, or give another --run folder"
            ) from error
        except OSError:
            pass  # a file system that has no locks: two runs in it are the user's to avoid
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
