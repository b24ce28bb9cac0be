"""What a chat template leaves out of a conversation, found by rendering."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys under which data sets and templates keep a turn's reasoning."""

TAG = re.compile(r"(</?think>)")
"""The tags of a thought within words; some data leaves out the first."""

PROBE = "T-SPIN probe"

Messages = Sequence[Mapping[str, Any]]


class Piece(NamedTuple):
    """A part of a message: its name for people, and a function that puts another text in its place.

    Attributes:
        put: gives the message with another text; other pieces may have been put into it before.
    """

    name: str
    put: Callable[[Mapping[str, Any], str], dict[str, Any]]


def left_out(
    messages: Messages,
    render: Callable[[Messages], str],
    *,
    reasoning_key: str = REASONING_KEYS[0],
) -> list[tuple[int, str]]:
    """Find the pieces of messages that a rendering does not have.

    All pieces are rendered with marks in their places, which occur nowhere else. A piece whose mark
    is missing is rendered once more: if another text in its place changes nothing, it is left out.

    Args:
        render: renders messages; "" if that fails.
        reasoning_key: the key under which the template expects a turn's reasoning.

    Returns:
        A message's index and the name of what it loses, each.
    """
    marked = list(messages)
    marks: list[tuple[str, int, Piece]] = []
    for index, message in enumerate(messages):
        for piece in _pieces(message, reasoning_key):
            mark = _mark(len(marks))
            marked[index] = piece.put(marked[index], mark)
            marks.append((mark, index, piece))
    rendered = render(marked)
    doubtful = [(index, piece) for mark, index, piece in marks if mark not in rendered]
    if not doubtful:
        return []
    plain = render(messages)
    return [
        (index, piece.name)
        for index, piece in doubtful
        if render(_with(messages, index, piece.put(messages[index], _mark(0)))) == plain
    ]


def _mark(number: int) -> str:
    """A text that may be a tool's name as well."""
    return f"{PROBE.replace(' ', '_')}_{number:04d}"


def _with(messages: Messages, index: int, message: Mapping[str, Any]) -> Messages:
    return [*messages[:index], message, *messages[index + 1 :]]


def _pieces(message: Mapping[str, Any], reasoning_key: str) -> Iterator[Piece]:
    reasoning: dict[str, list[str]] = {}
    for key in dict.fromkeys((reasoning_key, *REASONING_KEYS)):
        text = message.get(key)
        if isinstance(text, str) and text.strip():
            reasoning.setdefault(text.strip(), []).append(key)
    for keys in reasoning.values():
        yield Piece("reasoning", partial(_put_values, keys))
    parts = TAG.split(message["content"] or "")
    for index in range(0, len(parts), 2):
        if parts[index].strip():
            closed = parts[index + 1 : index + 2] == ["</think>"]
            yield Piece("reasoning" if closed else "words", partial(_put_part, index))
    for index, call in enumerate(message.get("tool_calls") or ()):
        if call.get("function", call).get("name"):
            yield Piece("tool calls", partial(_put_name, index))


def _put_values(keys: Sequence[str], message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Put a text under all keys that have the same; templates read one of them."""
    return {**message, **dict.fromkeys(keys, text)}


def _put_part(index: int, message: Mapping[str, Any], text: str) -> dict[str, Any]:
    parts = TAG.split(message["content"])
    # The white space around a text stays, since templates look at it.
    parts[index] = parts[index].replace(parts[index].strip(), text)
    return {**message, "content": "".join(parts)}


def _put_name(index: int, message: Mapping[str, Any], text: str) -> dict[str, Any]:
    calls = list(message["tool_calls"])
    call = calls[index]
    function = {**call.get("function", call), "name": text}
    calls[index] = {**call, "function": function} if "function" in call else function
    return {**message, "tool_calls": calls}
