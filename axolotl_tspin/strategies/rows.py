"""Reader of prompts and responses in a data set's rows, with errors that name the place."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from axolotl.utils.dict import remove_none_values

from axolotl_tspin.errors import BadRow, UntrainedRow

DEFAULT_ROLES = {
    "system": ["system", "developer"],
    "user": ["user", "human"],
    "assistant": ["assistant", "gpt"],
    "tool": ["tool", "function"],
}
OPENAI = {"role": "role", "content": "content"}
SHAREGPT = {"role": "from", "content": "value"}
"""Names of a message's role and content in the two recognised shapes."""

NEVER_BLANK = ("user", "assistant")
"""Roles whose messages must have words; a system prompt or a tool's answer may be empty."""


TRAINING_KEYS = ("weight", "train")
"""Keys of a turn with which public data says whether it is trained on (OpenAI's, Axolotl's)."""

SYSTEM_COLUMN = "system"
"""Axolotl reads a row's system prompt here, whatever the YAML says."""


class Conversation(NamedTuple):
    """The messages before the last assistant turn, and that turn: the annotated response."""

    prompt: list[dict[str, Any]]
    response: dict[str, Any]


class RowReader:
    """Reads one data set's rows.

    Args:
        source: name of the data set in errors, usually its path.
        message_keys: `message_property_mappings`, from a template's names of a message's keys to
            the data's. Where role and content have OpenAI's names, ShareGPT's are read too.
        roles: Axolotl's `roles`, target role → names in the data; joined with the usual names.
        drop_system_message: leave system messages out of prompts.
        field_training: Axolotl's `message_field_training`, the key that says whether a turn is
            trained on.
    """

    def __init__(
        self,
        source: str,
        *,
        message_keys: Mapping[str, str] | None = None,
        roles: Mapping[str, list[str]] | None = None,
        drop_system_message: bool = False,
        field_training: str | None = None,
    ) -> None:
        self.source = source
        self.message_keys = OPENAI | dict(message_keys or {})
        self.role_of = {n: role for role, names in DEFAULT_ROLES.items() for n in names}
        self.role_of |= {n: role for role, names in (roles or {}).items() for n in names}
        self.drop_system_message = drop_system_message
        self.field_training = field_training

    def error(self, row: int, column: str, problem: str, kind: str) -> BadRow:
        """Make the error of a row; `kind` is the fault as `BadRow` counts it."""
        return BadRow(f"{self.source}: row {row}, column '{column}': {problem}", kind)

    def text(self, row: int, column: str, value: Any, *, may_be_blank: bool = False) -> str:
        """Read a column of text; anything else is an error, as is blank text by default."""
        if isinstance(value, list) and value and all(isinstance(p, Mapping) for p in value):
            kinds = ", ".join(sorted({str(part.get("type")) for part in value}))
            raise self.error(
                row,
                column,
                f"expected text, found content parts of the types {kinds}; only text parts are "
                "supported, so drop the row",
                "content that is not text",
            )
        if not isinstance(value, str):
            raise self.error(
                row,
                column,
                f"expected text, found {_kind(value)}; fix or drop it",
                "content that is not text",
            )
        if not may_be_blank and not value.strip():
            raise self.error(
                row, column, "the text is empty; fill it in or drop the row", "empty text"
            )
        return value

    def response(
        self,
        row: int,
        column: str,
        value: Any,
        *,
        may_be_blank: bool = False,
        prompt: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """Read a response column as an assistant message. It holds text, one such message, or
        messages that end with one.

        Args:
            prompt: the messages that the row's annotated response answers; messages before this
                response must be the same.
        """
        if isinstance(value, list):
            messages = self._up_to_response(row, column, value)
            self._check_prompt(row, column, messages[:-1], prompt)
            message, column = messages[-1], f"{column}[{len(messages) - 1}]"
        elif isinstance(value, Mapping):
            message = self.message(row, column, 0, value)
            if message["role"] != "assistant":
                raise self.error(
                    row,
                    column,
                    f"expected an assistant message, found one of '{message['role']}'",
                    "no assistant turn",
                )
        else:
            message = {"role": "assistant", "content": value}
        self._check_content(row, column, message, may_be_blank=may_be_blank)
        return message

    def words(self, row: int, column: str, message: Mapping[str, Any]) -> str:
        """Get a response's words, for templates that render nothing else."""
        if message.get("tool_calls"):
            raise self.error(
                row,
                column,
                "the response has tool calls; they need `type: t_spin.chat_template`",
                "tool calls under a text template",
            )
        return str(message["content"])

    def conversation(self, row: int, column: str, value: Any, system: Any = None) -> Conversation:
        """Read messages in OpenAI's or ShareGPT's shape; messages after the last assistant turn are
        left out.

        Args:
            system: the row's column "system", which comes before a conversation that does not
                begin with a system message, as Axolotl has it; None or blank for none.

        Raises:
            UntrainedRow: the data set excludes the last assistant turn from training.
        """
        kept: list[dict[str, Any]] = []
        for index, message in enumerate(self._up_to_response(row, column, value)):
            if self.drop_system_message and message["role"] == "system":
                continue
            self._check_content(row, f"{column}[{index}]", message)
            kept.append(message)
        *prompt, response = kept
        self._check_trained(row, column, response)
        if (
            system
            and not self.drop_system_message
            and (not prompt or prompt[0]["role"] != "system")
        ):
            words = self.text(row, SYSTEM_COLUMN, system, may_be_blank=True)
            prompt = [{"role": "system", "content": words}, *prompt] if words.strip() else prompt
        if not any(message["role"] != "system" for message in prompt):
            raise self.error(
                row, column, "nothing comes before the assistant turn: no prompt", "no prompt"
            )
        return Conversation(prompt, response)

    def _check_trained(self, row: int, column: str, response: Mapping[str, Any]) -> None:
        """Raise UntrainedRow where a key of the turn says that it is not to be trained on."""
        for key in (self.field_training, *TRAINING_KEYS):
            value = response.get(key) if key else None
            if value is not None and value in (0, False):
                raise UntrainedRow(
                    f"{self.source}: row {row}, column '{column}': the last assistant turn has "
                    f"'{key}: {value}'",
                    f"the last assistant turn has '{key}: {value}'",
                )

    def _check_prompt(
        self,
        row: int,
        column: str,
        messages: Sequence[Mapping[str, Any]],
        prompt: Sequence[Mapping[str, Any]],
    ) -> None:
        """Refuse a response to another prompt; without messages it is only the response."""
        answered, expected = _turns(messages), _turns(prompt)
        if answered and expected and answered != expected:
            raise self.error(
                row,
                column,
                f"its response answers {answered[-1]!r:.60}, the annotated one answers "
                f"{expected[-1]!r:.60}; all responses of a row must answer one prompt, so drop "
                "the row",
                "responses to different prompts",
            )

    def tools(self, row: int, column: str, value: Any) -> list[dict[str, Any]] | None:
        """Read a conversation's tools: a list, or one as JSON text; None if there are none."""
        tools = self._parsed(row, column, remove_none_values(value))
        if not tools:
            return None
        return self._with_parsed(row, column, tools, "parameters")

    def _up_to_response(self, row: int, column: str, value: Any) -> list[dict[str, Any]]:
        """Read a list of messages, or one as JSON text, up to its last assistant turn."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = self._parsed(row, column, value)
        if not isinstance(value, list) or not value:
            raise self.error(
                row,
                column,
                f"expected a list of messages, found {_kind(value)}; name the right column with "
                "`field_messages`",
                "no list of messages",
            )
        messages = [self.message(row, column, i, message) for i, message in enumerate(value)]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise self.error(
                row,
                column,
                "the conversation has no assistant turn, so there is no annotated response; drop "
                "the row, or name the data's assistant role with `roles: {assistant: [...]}`",
                "no assistant turn",
            )
        return messages[: turns[-1] + 1]

    def _check_content(
        self, row: int, column: str, message: Mapping[str, Any], *, may_be_blank: bool = False
    ) -> None:
        """Refuse content that a template would render as nothing, or not at all."""
        calls = message["role"] == "assistant" and message.get("tool_calls")
        if calls and message["content"] is None:
            return
        may_be_blank = may_be_blank or bool(calls) or message["role"] not in NEVER_BLANK
        self.text(row, column, message["content"], may_be_blank=may_be_blank)

    def message(self, row: int, column: str, index: int, value: Any) -> dict[str, Any]:
        """Read one message: the keys `role` and `content`, the others that `message_keys` maps, and
        all further keys. Keys without a value are left out at every depth, because a data set gives
        every row the keys of all rows."""
        if not isinstance(value, Mapping):
            raise self.error(
                row, column, f"message {index} is {_kind(value)}, not a message", "not a message"
            )
        present = remove_none_values(value)
        keys = self.message_keys
        if OPENAI.items() <= keys.items() and "role" not in present and "from" in present:
            keys = keys | SHAREGPT
        if keys["role"] not in present or keys["content"] not in value:
            raise self.error(
                row,
                column,
                f"message {index} has the keys {sorted(value)}, not '{keys['role']}' and "
                f"'{keys['content']}'; name them with `message_property_mappings`",
                "a message without role or content",
            )
        name = present[keys["role"]]
        role = self.role_of.get(name) if isinstance(name, str) else None
        if role is None:
            raise self.error(
                row,
                column,
                f"message {index} has the unknown role {name!r} (known: "
                f"{', '.join(sorted(self.role_of))}); map it with "
                f"`roles: {{{_likely_role(name)}: [{name}]}}`",
                "an unknown role",
            )
        mapped = {key: present[theirs] for key, theirs in keys.items() if theirs in present}
        rest = {key: item for key, item in present.items() if key not in keys.values()}
        message = {"role": role, "content": _joined_parts(present.get(keys["content"]))}
        message |= {key: item for key, item in (rest | mapped).items() if key not in message}
        if message.get("tool_calls"):
            where = f"{column}[{index}].tool_calls"
            calls = self._parsed(row, where, message["tool_calls"])
            message["tool_calls"] = self._with_parsed(row, where, calls, "arguments")
        return message

    def _with_parsed(self, row: int, column: str, functions: Any, key: str) -> list[dict[str, Any]]:
        """Parse tools or tool calls whose `key` may be JSON text, which templates would encode a
        second time."""
        if not isinstance(functions, list) or not all(isinstance(f, Mapping) for f in functions):
            raise self.error(
                row,
                column,
                f"expected a list of objects, found {_kind(functions)}; fix or drop it",
                "tools or tool calls that are not objects",
            )
        parsed = []
        for index, item in enumerate(functions):
            nested = isinstance(item.get("function"), Mapping)
            function = dict(item["function"] if nested else item)
            if key in function:
                function[key] = self._parsed(row, f"{column}[{index}].{key}", function[key])
            parsed.append({**item, "function": function} if nested else function)
        return parsed

    def _parsed(self, row: int, column: str, value: Any) -> Any:
        """Parse a value that may be JSON text."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise self.error(
                row,
                column,
                f"expected JSON, found {_kind(value)} ({error}); fix or drop it",
                "torn JSON",
            ) from error


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """The turns of a prompt, without system messages, which one column may leave out."""
    return [(m["role"], m["content"]) for m in messages if m["role"] != "system"]


def _likely_role(name: Any) -> str:
    """Guess the role that an unknown name stands for."""
    words = str(name).lower()
    if any(part in words for part in ("tool", "function_resp", "observation", "ipython")):
        return "tool"
    if any(part in words for part in ("model", "gpt", "bot", "assistant", "function", "agent")):
        return "assistant"
    return "system" if any(part in words for part in ("system", "context")) else "user"


def _joined_parts(content: Any) -> Any:
    """Join OpenAI's content parts to one text, if all are text."""
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
