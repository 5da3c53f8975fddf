"""JSON as RFC 8259 has it, which knows no NaN and no infinity: null stands for them."""

import json
import math
from typing import Any

_STRICT = json.JSONEncoder(allow_nan=False)


def line(record: dict[str, Any]) -> str:
    """A record as one line, without its end."""
    try:
        return _STRICT.encode(record)
    except ValueError:  # seldom, so all others pay nothing
        return _STRICT.encode(finite(record))


def finite(value: Any) -> Any:
    """The value with None for the floats in it, or in the dicts in it, that are not finite."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
