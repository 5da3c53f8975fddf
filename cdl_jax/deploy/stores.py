"""Object stores by URL, and what can go wrong with them in one sentence."""

import os
import pathlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, from_url

from cdl_jax.deploy.folder import Folder
from cdl_jax.errors import LogError, StoreError, masked

RETRIES, RETRY_SECONDS = 3, 15.0
OWN_IDENTITY = "CDL_JAX_MACHINE_IDENTITY"
_CREDENTIALS = {
    "s3": ("AWS_", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "gs": ("GOOGLE_", "GOOGLE_APPLICATION_CREDENTIALS to a key file"),
    "az": ("AZURE_", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
}
_IN_MEMORY: dict[str, MemoryStore] = {}


def open_store(url: str, *, create: bool = False) -> Any:
    """The obstore store at a URL or in a folder.

    `memory://NAME` is the same store for every caller in this process. The clouds read their
    credentials from the environment; without any they are refused here, not at the first request.

    Raises:
      LogError: for another kind of URL, a folder that is not there, or missing credentials.
    """
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return _IN_MEMORY.setdefault(url, MemoryStore())
    if scheme in ("", "file"):
        return _local(pathlib.Path(urlsplit(url).path if scheme else url), create)
    if scheme in _CREDENTIALS:
        _check_credentials(url, *_CREDENTIALS[scheme])
    retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    endpoint = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
    options: Any = {"connect_timeout": timedelta(seconds=5)}
    options |= {"allow_http": True} if endpoint.startswith("http://") else {}
    try:
        return from_url(url, retry_config=retry, client_options=options)
    except (BaseError, ValueError) as error:
        raise LogError(
            f"cannot open a log at {masked(url)!r}: give a folder, or a URL that begins with "
            f"file://, memory://, s3://, gs://, az:// or redis:// ({first_line(error)})"
        ) from error


class explained:
    """Turns a store's failure into one sentence, as a StoreError."""

    def __init__(self, name: str, deed: str):
        self._name, self._deed = name, deed

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, (BaseError, OSError)):
            raise StoreError(
                f"cannot {self._deed} the log {self._name}: {first_line(error)}"
            ) from error


class Objects:
    """A store's objects by key; every failure is a StoreError with the log's name in it."""

    def __init__(self, store: Any, name: str):
        self._store, self._name = store, name
        self._folder = Folder(str(store.prefix)) if isinstance(store, LocalStore) else None

    def get(self, key: str) -> bytes | None:
        """An object's bytes, or None where there is none."""
        with explained(self._name, "read"):
            try:
                if self._folder is not None:
                    return self._folder.read(key)
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def has(self, key: str) -> bool:
        """Whether there is such an object."""
        with explained(self._name, "read"):
            try:
                if self._folder is not None:
                    self._folder.check(key)
                else:
                    obstore.head(self._store, key)
            except FileNotFoundError:
                return False
            return True

    def written_at(self, key: str) -> float | None:
        """When an object was written, in seconds since the epoch by the store's clock."""
        with explained(self._name, "read"):
            try:
                return obstore.head(self._store, key)["last_modified"].timestamp()
            except FileNotFoundError:
                return None

    def put_new(self, key: str, blob: bytes) -> bool:
        """Writes an object once; whether this very content stands there now.

        A put whose answer was lost is repeated and finds its own bytes: success, too.
        """
        with explained(self._name, "write"):
            try:
                if self._folder is not None:
                    self._folder.create(key, blob)
                else:
                    obstore.put(self._store, key, blob, mode="create")
            except (AlreadyExistsError, FileExistsError):
                return self.get(key) == blob
            return True

    def put(self, key: str, blob: bytes) -> None:
        """Writes an object over what is there."""
        with explained(self._name, "write"):
            obstore.put(self._store, key, blob)

    def list(self, folder: str) -> Iterator[Any]:
        """Metadata (`path`, `size`, `last_modified`) of the objects in a folder."""
        with explained(self._name, "list"):
            for page in obstore.list(self._store, folder):
                yield from page

    def delete(self, keys: "list[str]") -> None:
        """Deletes objects; those that are gone already are no error."""
        with explained(self._name, "trim"):
            try:
                obstore.delete(self._store, keys)
            except FileNotFoundError:
                for key in keys:
                    self._delete_one(key)

    def _delete_one(self, key: str) -> None:
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def _local(path: pathlib.Path, create: bool) -> LocalStore:
    if path.exists() and not path.is_dir():
        raise LogError(f"the log {path} is a file; give a folder")
    if not path.exists() and not create:
        raise LogError(f"there is no log at {path}; start a trainer on it, or mend the path")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LogError(f"cannot make the folder {path}: {error.strerror}") from error
    return LocalStore(path.resolve())


def _check_credentials(url: str, prefix: str, mend: str) -> None:
    keyfile = pathlib.Path("~/.config/gcloud/application_default_credentials.json").expanduser()
    places = ("_REGION", "_ENDPOINT", "_ENDPOINT_URL", "_ALLOW_HTTP", "_PROFILE")
    given = any(n.startswith(prefix) and not n.endswith(places) for n in os.environ)
    if given or OWN_IDENTITY in os.environ or (prefix == "GOOGLE_" and keyfile.exists()):
        return
    raise LogError(
        f"no credentials for {url}: set {mend}, or {OWN_IDENTITY}=1 where the machine has an "
        "identity of its own"
    )
