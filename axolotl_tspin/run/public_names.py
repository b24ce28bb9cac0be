"""Names of data and models in a form that is safe to store and to publish."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")
"""Endings that mark a file rather than a data set on the hub."""


def without_credentials(name: str) -> str:
    """Remove user, password, query and fragment, which can hold keys, from a URL; leave other
    names unchanged."""
    if "://" not in name:
        return name
    return re.sub(r"://[^/?#]*@", "://", re.split(r"[?#]", name)[0])


def public_name(name: str) -> str:
    """Shorten a local path to its last part and take the credentials out of a URL; a hub name
    stays. The rest of a path means nothing elsewhere, or reveals something about this machine."""
    if "://" in name:
        return without_credentials(name)
    is_local = (
        os.path.exists(name)
        or name.startswith(("/", ".", "~"))
        or name.count("/") > 1
        or name.endswith(FILES)
    )
    return Path(name).name or name if is_local else name


def on_the_hub(name: str) -> bool:
    """True if a public name is a name on the hub."""
    return "/" in name and "://" not in name


def data_without_credentials(value: Any) -> Any:
    """Copy `datasets:` or a part of it, without credentials in its URLs (`path`, `data_files`)."""
    if isinstance(value, list):
        return [data_without_credentials(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: _urls_without_credentials(item) if key in ("path", "data_files") else item
        for key, item in value.items()
    }


def _urls_without_credentials(value: Any) -> Any:
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, list):
        return [_urls_without_credentials(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _urls_without_credentials(item) for key, item in value.items()}
    return value
