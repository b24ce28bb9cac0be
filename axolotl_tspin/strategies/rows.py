"""Reading prompts and responses out of a data set's rows, with errors that name the place."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from axolotl_tspin.errors import TSpinError

DEFAULT_ROLES = {
    "system": ["system", "developer"],
    "user": ["user", "human"],
    "assistant": ["assistant", "gpt"],
    "tool": ["tool", "function"],
}
MESSAGE_SHAPES = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})
"""OpenAI's and ShareGPT's names for a message's role and content."""

NEVER_BLANK = ("user", "assistant")
"""The roles whose messages have words; a system prompt or what a tool gives back may be empty."""


class Conversation(NamedTuple):
    """The messages before the last assistant turn, and that turn: the annotated response."""

    prompt: list[dict[str, Any]]
    response: dict[str, Any]


class RowReader:
    """Reads one data set's rows.

    Args:
        source: what errors call the data set, usually its path.
        message_keys: `message_property_mappings`; None recognises OpenAI's and ShareGPT's shapes.
        roles: Axolotl's `roles`, target role → names in the data; joined with the usual names.
        drop_system_message: leave system messages out of prompts.
    """

    def __init__(
        self,
        source: str,
        *,
        message_keys: Mapping[str, str] | None = None,
        roles: Mapping[str, list[str]] | None = None,
        drop_system_message: bool = False,
    ) -> None:
        self.source = source
        self.message_keys = dict(message_keys) if message_keys else None
        self.role_of = {n: role for role, names in DEFAULT_ROLES.items() for n in names}
        self.role_of |= {n: role for role, names in (roles or {}).items() for n in names}
        self.drop_system_message = drop_system_message

    def error(self, row: int, column: str, problem: str) -> TSpinError:
        return TSpinError(f"{self.source}: row {row}, column '{column}': {problem}")

    def text(self, row: int, column: str, value: Any, *, may_be_blank: bool = False) -> str:
        """A column that holds text; anything else is an error, as is blank text by default."""
        if isinstance(value, list) and value and all(isinstance(p, Mapping) for p in value):
            kinds = ", ".join(sorted({str(part.get("type")) for part in value}))
            raise self.error(
                row,
                column,
                f"expected text, found content parts of the types {kinds}; only parts of text "
                "are understood, so drop the row",
            )
        if not isinstance(value, str):
            raise self.error(row, column, f"expected text, found {_kind(value)}; fix or drop it")
        if not may_be_blank and not value.strip():
            raise self.error(row, column, "the text is empty; fill it in or drop the row")
        return value

    def response(self, row: int, column: str, value: Any) -> str:
        """A response column: text, one assistant message, or messages that end with one."""
        if isinstance(value, list):
            messages = self._up_to_response(row, column, value)
            return self.text(row, f"{column}[{len(messages) - 1}]", messages[-1]["content"])
        if isinstance(value, Mapping):
            message = self.message(row, column, 0, value)
            if message["role"] != "assistant":
                raise self.error(
                    row, column, f"expected an assistant message, found one of '{message['role']}'"
                )
            return self.text(row, column, message["content"])
        return self.text(row, column, value)

    def conversation(self, row: int, column: str, value: Any) -> Conversation:
        """Messages in OpenAI's or ShareGPT's shape; what follows the last assistant turn is left
        out."""
        kept = []
        for index, message in enumerate(self._up_to_response(row, column, value)):
            if self.drop_system_message and message["role"] == "system":
                continue
            self._check_content(row, f"{column}[{index}]", message)
            kept.append(message)
        *prompt, response = kept
        if not any(message["role"] != "system" for message in prompt):
            raise self.error(row, column, "nothing comes before the assistant turn: no prompt")
        return Conversation(prompt, response)

    def _up_to_response(self, row: int, column: str, value: Any) -> list[dict[str, Any]]:
        """A list of messages up to its last assistant turn."""
        if not isinstance(value, list) or not value:
            raise self.error(
                row,
                column,
                f"expected a list of messages, found {_kind(value)}; name the right column with "
                "`field_messages`",
            )
        messages = [self.message(row, column, i, message) for i, message in enumerate(value)]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise self.error(
                row,
                column,
                "the conversation has no assistant turn, and so no annotated response; drop the "
                "row, or name the data's assistant role with `roles: {assistant: [...]}`",
            )
        return messages[: turns[-1] + 1]

    def _check_content(self, row: int, column: str, message: Mapping[str, Any]) -> None:
        """Refuse what a template would render as nothing, or not at all."""
        calls = message["role"] == "assistant" and message.get("tool_calls")
        if calls and message["content"] is None:
            return
        may_be_blank = bool(calls) or message["role"] not in NEVER_BLANK
        self.text(row, column, message["content"], may_be_blank=may_be_blank)

    def message(self, row: int, column: str, index: int, value: Any) -> dict[str, Any]:
        """One message with the keys `role` and `content` and whatever else it carries."""
        if not isinstance(value, Mapping):
            raise self.error(row, column, f"message {index} is {_kind(value)}, not a message")
        keys = self.message_keys or next(
            (s for s in MESSAGE_SHAPES if s["role"] in value), MESSAGE_SHAPES[0]
        )
        role_key, content_key = keys.get("role", "role"), keys.get("content", "content")
        if role_key not in value or content_key not in value:
            raise self.error(
                row,
                column,
                f"message {index} has the keys {sorted(value)}, not '{role_key}' and "
                f"'{content_key}'; name them with `message_property_mappings`",
            )
        role = self.role_of.get(value[role_key])
        if role is None:
            raise self.error(
                row,
                column,
                f"message {index} has the unknown role {value[role_key]!r} (known: "
                f"{', '.join(sorted(self.role_of))}); map it with `roles: {{user: [...]}}`",
            )
        rest = {
            k: v for k, v in value.items() if k not in (role_key, content_key) and v is not None
        }
        return {"role": role, "content": _joined_parts(value[content_key]), **rest}


def _joined_parts(content: Any) -> Any:
    """OpenAI's content parts, where all are text, as one text."""
    if not isinstance(content, list):
        return content
    texts = [
        part["text"]
        for part in content
        if isinstance(part, Mapping)
        and part.get("type", "text") == "text"
        and isinstance(part.get("text"), str)
    ]
    return "".join(texts) if len(texts) == len(content) else content


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    return f"{type(value).__name__} {value!r}"[:80]
