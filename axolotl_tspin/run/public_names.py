"""Names of data and models, as they may be kept in a run directory and published."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")
"""Endings of what is a file and no data set of the hub."""


def without_credentials(name: str) -> str:
    """A URL without user, password, query and fragment, which can hold keys; else what it was."""
    if "://" not in name:
        return name
    return re.sub(r"://[^/?#]*@", "://", re.split(r"[?#]", name)[0])


def public_name(name: str) -> str:
    """A hub name as it is, a URL without its credentials, of a local path the last part: the rest
    means nothing elsewhere, or tells of this machine."""
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
    """Whether a public name is one of the hub's."""
    return "/" in name and "://" not in name


def data_without_credentials(value: Any) -> Any:
    """`datasets:` or a part of it, its URLs (in `path` and `data_files`) without credentials."""
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
