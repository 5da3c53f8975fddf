"""Errors that a user can mend. The command line prints them as one sentence."""

import re

MASK = "***"
_HOST = r"(?:\[[^]\s]*\]|[^][:@/?#\s]+)"
_SECRET = re.compile(
    "(?<=://)(?:"
    # Behind user:password@ or host:port, to the last @ before a query. What looks like a port and
    # a path may be a password with a / in it: it counts as one where an @ follows.
    rf"(?=[^/?#\s]*@|{_HOST}:\d{{1,5}}[/?#])(?:(?!://)[^?#\s]|[?#](?!\w+=))*@"
    # What is no host and no port before a /, ? or # is a password that holds it: to the last @.
    rf"|(?!{_HOST}(?::\d{{0,5}})?(?:[/?#\s]|$))(?=[^/?#\s@]*:)(?:(?!://)\S)*@)"
)


def masked(text: str) -> str:
    """The text without the user names and passwords of the URLs in it.

    Examples:
      >>> masked("redis://me:secret@host:6379/stream")
      'redis://***@host:6379/stream'
    """
    return _SECRET.sub(f"{MASK}@", text)


class CdlError(Exception):
    """Base of the errors below."""


class ConfigError(CdlError):
    """A setting that cannot be: says the value, the limit and the mend."""


class DataError(CdlError):
    """A data set or stream that is missing or of the wrong shape."""


class LogError(CdlError):
    """A log that cannot be opened, read or written."""


class StoreError(LogError):
    """A log's store that is full, forbidden or out of reach, now; later it may do again."""


class OwnershipError(LogError):
    """Another writer owns the log, or took it over."""


class RefusedUpdateError(LogError):
    """An update that a replica does not apply.

    Attributes:
      reason: damaged, signature, foreign, order, model, digest, memory or other.
    """

    def __init__(self, message: str, *, reason: str = "other"):
        super().__init__(message)
        self.reason = reason


class CheckpointError(CdlError):
    """A checkpoint that cannot be written, read, or gone on from."""


class TrainingError(CdlError):
    """Training that cannot go on."""
