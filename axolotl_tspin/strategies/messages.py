"""One message of a conversation, read as Axolotl's chat strategy reads it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from axolotl_tspin.errors import BadRow
from axolotl_tspin.strategies.content import (
    are_spans,
    joined_parts,
    part_types,
    parts_train_all,
    spans_train_all,
    split_thought,
)

OPENAI = {"role": "role", "content": "content"}
SHAREGPT = {"role": "from", "content": "value"}
"""Names of a message's role and content in the two recognised shapes."""

NEVER_BLANK = ("user", "assistant")
"""Roles whose messages must have words; a system prompt or a tool's answer may be empty."""

TRAINING_KEYS = ("weight", "train")
"""Keys of a turn with which public data says whether it is trained on (OpenAI's, Axolotl's)."""

EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values of a message's key that say no more than its absence: a data set gives every message the
keys of all, and some writers fill them."""

NOT_TEXT = "content that is not text"


class Place(NamedTuple):
    """A row's column, or a part of it, as errors name it."""

    source: str
    row: int
    column: str

    def error(self, problem: str, kind: str) -> BadRow:
        """Make the error of this place; `kind` is the fault as `BadRow` counts it."""
        return BadRow(f"{self.source}: row {self.row}, column '{self.column}': {problem}", kind)

    def at(self, part: str) -> "Place":
        """Name a part of this place."""
        return self._replace(column=self.column + part)


class MessageFormat(NamedTuple):
    """How the YAML says that a data set's messages are read.

    Attributes:
        keys: a template's names of a message's keys → the data's.
        role_of: names of roles in the data → roles.
        thinking: the template's key of an assistant's thought.
        split_thinking: split thoughts from an assistant's words at their tags.
        training: the key that says whether a turn is trained on, if one does.
        training_detail: the key with the spans of a turn that are trained on, if there is one.
    """

    keys: dict[str, str]
    role_of: dict[str, str]
    thinking: str
    split_thinking: bool
    training: str | None
    training_detail: str | None


def read_message(place: Place, index: int, value: Any, form: MessageFormat) -> dict[str, Any]:
    """Read one message: the keys `role` and `content`, the others that the format maps, and all
    further keys. Keys without a value are left out.

    Content is text; where it is missing, it is "" if the message may be blank, else None.

    Args:
        place: the column of messages.
        index: the message's number in it.
    """
    if not isinstance(value, Mapping):
        raise place.error(f"message {index} is {kind_of(value)}, not a message", "not a message")
    present = {key: item for key, item in value.items() if item not in EMPTY}
    keys = _keys(value, form)
    if keys["role"] not in present:
        raise _unnamed(place, index, value, keys)
    role = _role(place, index, present[keys["role"]], form.role_of)
    mapped = {key: present[theirs] for key, theirs in keys.items() if theirs in present}
    rest = {key: item for key, item in present.items() if key not in keys.values()}
    message = {"role": role, "content": value.get(keys["content"])}
    message |= {key: item for key, item in (rest | mapped).items() if key not in message}
    where = place.at(f"[{index}]")
    if "tool_calls" in message:
        calls = parsed(where.at(".tool_calls"), message.pop("tool_calls"))
        if calls not in EMPTY:
            message["tool_calls"] = with_parsed(where.at(".tool_calls"), calls, "arguments")
    if may_be_blank(message):
        message["content"] = message["content"] or ""
    elif keys["content"] not in value:
        raise _unnamed(place, index, value, keys)
    return with_words(where, message, form)


def untrained_reason(
    place: Place, value: Mapping[str, Any], message: Mapping[str, Any], form: MessageFormat
) -> str | None:
    """Say why the data set excludes an assistant turn from training; None if it does not.

    Args:
        value: the turn as the data set has it.
        message: the turn as `read_message` read it.
    """
    for key in (form.training, *TRAINING_KEYS):
        flag = value.get(key) if key else None
        if flag is not None and flag in (0, False):
            return f"an assistant turn with '{key}: {flag}'"
    keys = _keys(value, form)
    content, thought = value.get(keys["content"]), value.get(keys.get(form.thinking, form.thinking))
    by_parts = parts_train_all(content)
    if False in (by_parts, parts_train_all(thought)):
        return "an assistant turn with a part that is not to be trained on"
    spans = value.get(form.training_detail) if form.training_detail else None
    if spans is None or by_parts is not None:
        return None
    if not are_spans(spans):
        raise place.at(f".{form.training_detail}").error(
            "expected a list of objects with the keys begin_offset, end_offset and train, found "
            f"{kind_of(spans)}; fix or drop it",
            "no spans to train on",
        )
    trained = spans_train_all(spans, str(message["content"]))
    return None if trained else "an assistant turn with a span that is not to be trained on"


def with_words(place: Place, message: dict[str, Any], form: MessageFormat) -> dict[str, Any]:
    """Split a thought from an assistant's words, and join content parts."""
    content, thinking = message["content"], form.thinking
    splits = form.split_thinking and message["role"] == "assistant" and isinstance(content, str)
    if splits and (split := split_thought(content)):
        message[thinking], content = split
    message["content"] = joined_parts(content)
    if isinstance(message.get(thinking), list):
        thought = joined_parts(message[thinking])
        message[thinking] = checked_text(place.at(f".{thinking}"), thought, may_be_blank=True)
    return message


def may_be_blank(message: Mapping[str, Any]) -> bool:
    """True if a message needs no words: it has another role, or tool calls beside them."""
    calls = message["role"] == "assistant" and message.get("tool_calls")
    return bool(calls) or message["role"] not in NEVER_BLANK


def checked_text(place: Place, value: Any, *, may_be_blank: bool = False) -> str:
    """Check that a value is text; anything else is an error, as is blank text by default."""
    if isinstance(value, list) and value and all(isinstance(p, Mapping) for p in value):
        raise place.error(
            f"expected text, found content parts of the types {part_types(value)}; only text parts "
            "are supported, so drop the row",
            NOT_TEXT,
        )
    if not isinstance(value, str):
        raise place.error(f"expected text, found {kind_of(value)}; fix or drop it", NOT_TEXT)
    if not may_be_blank and not value.strip():
        raise place.error("the text is empty; fill it in or drop the row", "empty text")
    return value


def with_parsed(place: Place, functions: Any, key: str) -> list[dict[str, Any]]:
    """Parse tools or tool calls whose `key` may be JSON text, which templates would encode a second
    time."""
    if not isinstance(functions, list) or not all(isinstance(f, Mapping) for f in functions):
        raise place.error(
            f"expected a list of objects, found {kind_of(functions)}; fix or drop it",
            "tools or tool calls that are not objects",
        )
    read = []
    for index, item in enumerate(functions):
        nested = isinstance(item.get("function"), Mapping)
        function = dict(item["function"] if nested else item)
        if key in function:
            function[key] = parsed(place.at(f"[{index}].{key}"), function[key])
        read.append({**item, "function": function} if nested else function)
    return read


def parsed(place: Place, value: Any) -> Any:
    """Parse a value that may be JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise place.error(
            f"expected JSON, found {kind_of(value)} ({error}); fix or drop it", "torn JSON"
        ) from error


def kind_of(value: Any) -> str:
    """Describe a value in an error."""
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    return f"{type(value).__name__} {value!r}"[:80]


def _keys(value: Mapping[str, Any], form: MessageFormat) -> dict[str, str]:
    """Find a message's names of keys: ShareGPT's where the format has OpenAI's and it does not."""
    is_sharegpt = value.get("role") in EMPTY and value.get("from") not in EMPTY
    return (
        form.keys | SHAREGPT if is_sharegpt and form.keys.items() >= OPENAI.items() else form.keys
    )


def _unnamed(place: Place, index: int, value: Mapping[str, Any], keys: Mapping[str, str]) -> BadRow:
    return place.error(
        f"message {index} has the keys {sorted(value)}, not '{keys['role']}' and "
        f"'{keys['content']}'; name them with `message_property_mappings`",
        "a message without role or content",
    )


def _role(place: Place, index: int, name: Any, role_of: Mapping[str, str]) -> str:
    role = role_of.get(name) if isinstance(name, str) else None
    if role is None:
        raise place.error(
            f"message {index} has the unknown role {name!r} (known: "
            f"{', '.join(sorted(role_of))}); map it with "
            f"`roles: {{{_likely_role(name)}: [{name}]}}`",
            "an unknown role",
        )
    return role


def _likely_role(name: Any) -> str:
    """Guess the role that an unknown name stands for."""
    words = str(name).lower()
    if any(part in words for part in ("tool", "function_resp", "observation", "ipython")):
        return "tool"
    if any(part in words for part in ("model", "gpt", "bot", "assistant", "function", "agent")):
        return "assistant"
    return "system" if any(part in words for part in ("system", "context")) else "user"
