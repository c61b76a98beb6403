"""Identity: canonical JSON and the hash that names a run."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

from kdpipe.core.errors import ConfigError

ID_LENGTH = 12  # hex digits: one chance in 10^5 of a clash among 100,000 runs
_AS_IT_IS = (str, int, bool, type(None))


def canonical(value: Any) -> str:
    """JSON in which equal settings are equal text: sorted keys, no spaces, 100.0 as 100.

    Args:
        value: nested dicts, lists, strings, numbers, booleans and None.

    Raises:
        ConfigError: a number is not finite (it would have no place in JSON).
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any, length: int = ID_LENGTH) -> str:
    """The first `length` hex digits of the SHA-256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def id_in(name: str) -> str:
    """The id that the name of a run's folder ends with; to work it out again would take its whole spec."""
    return name.rpartition("-")[2]


def slug(text: str) -> str:
    """`text` reduced to what is safe and readable in a file name."""
    return re.sub(r"[^a-zA-Z0-9.]+", "_", text).strip("_.") or "x"


def _plain(value: Any) -> Any:
    if isinstance(value, _AS_IT_IS):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"a setting is {value}, which is not a finite number")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} has no canonical form")
