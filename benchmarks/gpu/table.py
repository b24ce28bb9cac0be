"""Markdown tables from the records that `run.py` writes (no torch)."""

from collections.abc import Iterable
from typing import Any

CONTROL = ("run", "stage", "title", "event", "table", "failed", "target", "met", "facts")
"""Keys of a result that are no columns."""


def tables_of(records: Iterable[dict[str, Any]]) -> str:
    """Make a section per stage, of the last run that had it."""
    runs: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if record["event"] == "began":
            runs[record["stage"]] = []
        runs[record["stage"]].append(record)
    return "\n\n".join(_section(runs[number]) for number in sorted(runs))


def _section(records: list[dict[str, Any]]) -> str:
    began = records[0]
    ended = next((r for r in records if r["event"] == "ended"), None)
    parts = [f"## {began['stage']}. {began['title']}"]
    outcome = "**not ended**" if ended is None else f"{ended['outcome']} in {ended['seconds']:g} s"
    if ended and ended["outcome"] == "failed":
        outcome = f"**failed** after {ended['seconds']:g} s"
    dry = ", tiny sizes on the CPU" if began["sizes"] == "dry" else ""
    parts.append(f"{began['run']}, `{began['command']}`{dry}: {outcome}.")
    if ended and ended.get("error"):
        parts.append(f"```\n{ended['error']}\n```")
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["event"] == "result":
            groups.setdefault(record.get("table", ""), []).append(record)
    for title, rows in groups.items():
        facts = [row["facts"] for row in rows if "facts" in row]
        plain = [row for row in rows if "facts" not in row]
        if title:
            parts.append(f"**{title}**")
        if facts:
            parts.append(_table([{"": key, "is": f[key]} for f in facts for key in f]))
        if plain:
            parts.append(_table([_cells(row) for row in plain]))
    return "\n\n".join(parts)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    cells = {key: value for key, value in row.items() if key not in CONTROL}
    if "target" in row:
        # A dry run has nothing to measure a target with.
        word = {True: "met", False: "**missed**", None: "not measured"}[row["met"]]
        cells["target"] = f"{row['target']}: {word}"
    if row.get("failed"):
        cells["error"] = f"**failed** {cells.get('error', '')}".strip()
    return cells


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns.sort(key=("target", "skipped", "error").__contains__)  # these last
    lines = [columns, ["---"] * len(columns)]
    lines += [[_text(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return " ".join(str(value).split()).replace("|", "\\|")
