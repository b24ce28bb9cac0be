"""An iteration's triplets as a plain data set (`axolotl t-spin export`)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.store import PROVENANCE, iterate_triplets, messages_of

Format = Literal["triplets", "trl", "spin"]
HUB = "hub:"
COLUMNS = ["messages", "prompt", "annotated", "synthetic", "proto_synthetic"]


def export(triplets: Path, target: str, style: Format) -> int:
    """Write an iteration's triplets; how many rows that were.

    Args:
        triplets: the iteration's file.
        target: `*.parquet`, `*.jsonl`, or `hub:<user>/<data set>`.
        style: "triplets" (prompt, annotated, synthetic, proto_synthetic, and where the generated
            ones come from), "trl" (TRL's preference format: prompt, chosen = annotated, rejected =
            synthetic), or "spin" (SPIN's: real, generated).

    Raises:
        TSpinError: the target's ending is none of these, or a row has tool calls, which "trl" and
            "spin" do not hold.
    """
    rows = {"triplets": _triplet_rows, "trl": _trl_rows, "spin": _spin_rows}[style]
    if not target.startswith(HUB) and Path(target).suffix not in (".parquet", ".jsonl"):
        raise TSpinError(f"`{target}` ends in neither .parquet nor .jsonl, nor begins with {HUB}")
    data = Dataset.from_list(list(rows(triplets)))
    if target.startswith(HUB):
        data.push_to_hub(target.removeprefix(HUB))
    elif target.endswith(".parquet"):
        data.to_parquet(target)
    else:
        data.to_json(target, force_ascii=False)
    return len(data)


def _triplet_rows(triplets: Path) -> Iterator[dict[str, Any]]:
    provenance = [
        f"{name}_{field}" for name in ("synthetic", "proto_synthetic") for field in PROVENANCE
    ]
    for row in iterate_triplets(triplets, [*COLUMNS, *provenance]):
        messages = messages_of(row)
        del row["messages"]
        yield row | ({"messages": list(map(_of_one_shape, messages))} if messages else {})


def _trl_rows(triplets: Path) -> Iterator[dict[str, Any]]:
    """Conversational where the data was, else plain text under the run's own template."""
    for number, row in enumerate(iterate_triplets(triplets, COLUMNS)):
        messages = messages_of(row)
        if messages:
            yield {
                "prompt": _plain(messages, number),
                "chosen": [_assistant(row["annotated"])],
                "rejected": [_assistant(row["synthetic"])],
            }
        else:
            yield {
                "prompt": row["prompt"],
                "chosen": row["annotated"],
                "rejected": row["synthetic"],
            }


def _spin_rows(triplets: Path) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(iterate_triplets(triplets, COLUMNS)):
        messages = messages_of(row) or [{"role": "user", "content": row["prompt"]}]
        prompt = _plain(messages, number)
        yield {
            "real": [*prompt, _assistant(row["annotated"])],
            "generated": [*prompt, _assistant(row["synthetic"])],
        }


def _plain(messages: list[dict[str, Any]], row: int) -> list[dict[str, str]]:
    """Role and content alone, as both formats have it."""
    if any(message.get("tool_calls") for message in messages):
        raise TSpinError(
            f"row {row}: its prompt has tool calls, which this format does not hold; use "
            "`--format triplets`"
        )
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _of_one_shape(message: dict[str, Any]) -> dict[str, Any]:
    """The arguments of tool calls as JSON text: a column of a data set has one type, and they have
    as many as there are tools. They are read so, too."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call.get("function") or call)
        if "arguments" in function:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append({**call, "function": function} if "function" in call else function)
    return message | {"tool_calls": calls}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
