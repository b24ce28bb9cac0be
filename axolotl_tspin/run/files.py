"""Small files that are written whole or not at all, and short hashes."""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Give `write` a temporary path next to `path` and put the result in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write valid JSON: numbers that are not finite, which it has no words for, become null."""
    text = json.dumps(_without_non_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    text += "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(value: Any) -> str:
    """Compute a short hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def temporary_beside(path: Path) -> Path:
    """Make the name of a file until it is complete; no other process on any machine uses it."""
    # The process's id alone is not enough: another machine may have the same one.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
