"""Columns that look like content and reach neither a prompt nor a response."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

SEVERAL, MANY = 4, 10
"""Words of a value that is a sentence, and of one that is no label however often it is repeated."""

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\S*[^\W\d_]\S*")
"""A word; scripts that are written without spaces count by characters."""


def unused_content_columns(
    rows: Sequence[Mapping[str, Any]], texts: Sequence[str], used: Collection[str]
) -> list[str]:
    """Name the columns of text that looks like content and that no text has.

    That is a column of strings, or of lists of strings, most of whose values are sentences, which
    differ from row to row and are not found in their row's text (white space aside). A column that
    renders the used columns again, as `text` of some data sets does, is not named.

    Args:
        rows: a data set's first rows, with all columns.
        texts: each row's rendered prompt and responses.
        used: columns that are read.
    """
    held = [_normal(text) for text in texts]
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in used]
    return [name for name in names if _is_unused_content(name, rows, held, used)]


def unused_columns_warning(source: str, columns: Sequence[str]) -> str:
    """Say what was found and what to do.

    Args:
        source: name of the data set.
        columns: what `unused_content_columns` returned; not empty.
    """
    several = len(columns) > 1
    return (
        f"{source}: the {'columns' if several else 'column'} {', '.join(map(repr, columns))} "
        f"{'look' if several else 'looks'} like content, but no prompt or response has "
        f"{'their' if several else 'its'} text. If it belongs there, name it in `prompt_template` "
        "(`type: t_spin.instruction`) or map it with the data set's keys; otherwise remove the "
        "column to end this warning"
    )


def _is_unused_content(
    name: str, rows: Sequence[Mapping[str, Any]], held: Sequence[str], used: Collection[str]
) -> bool:
    values: list[str] = []
    missing = 0
    for row, text in zip(rows, held, strict=True):
        parts = _strings(row.get(name))
        if parts is None:
            return False
        if parts:
            values.append(" ".join(parts))
            is_held = all(part in text for part in parts)
            missing += not (is_held or _renders(values[-1], row, used))
    return bool(values) and missing * 2 > len(values) and _looks_like_content(values)


def _looks_like_content(values: Sequence[str]) -> bool:
    distinct = set(values)
    if len(distinct) < 2 or any(value.startswith(("{", "[")) for value in distinct):
        return False
    sizes = sorted(len(WORD.findall(value)) for value in values)
    median = sizes[len(sizes) // 2]
    differ = len(distinct) * 2 >= len(values)
    return median >= MANY or (median >= SEVERAL and differ)


def _renders(value: str, row: Mapping[str, Any], used: Iterable[str]) -> bool:
    """True if a value has the text of every column of its row that is used."""
    parts = [part for name in used for part in _contents(row.get(name))]
    return bool(parts) and all(part in value for part in parts)


def _contents(value: Any) -> list[str]:
    """The normalised texts in a column of strings or of messages."""
    items = value if isinstance(value, list) else [value]
    keys = ("content", "value")
    texts = [m.get(k) for m in items if isinstance(m, Mapping) for k in keys]
    return _strings([t for t in [*items, *texts] if isinstance(t, str)]) or []


def _strings(value: Any) -> list[str] | None:
    """The normalised texts in a value without those that are blank; None if it holds others."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, str) for item in items):
        return None
    return [text for item in items if (text := _normal(item))]


def _normal(text: str) -> str:
    return " ".join(text.split())
