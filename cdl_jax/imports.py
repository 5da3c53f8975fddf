"""Functions of the user's own, by name."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from cdl_jax.errors import ConfigError


def imported(name: str) -> Callable[..., Any]:
    """`MODULE:FUNCTION`, of what is installed or lies in the current folder.

    Raises:
      ConfigError: when there is none.
    """
    module, _, function = name.partition(":")
    # An installed command has its own folder there instead. Last: a redis.py of the user's must
    # not stand for the installed one in what is imported from now on.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot find {name}: {error}; give MODULE:FUNCTION") from error
    if not callable(found):
        raise ConfigError(f"{name} is no function; give MODULE:FUNCTION")
    return found
