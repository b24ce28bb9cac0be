"""Reader of prompts and responses in a data set's rows, with errors that name the place."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from axolotl.utils.dict import remove_none_values

from axolotl_tspin.errors import BadRow, UntrainedRow
from axolotl_tspin.strategies.messages import (
    OPENAI,
    MessageFormat,
    Place,
    checked_text,
    kind_of,
    may_be_blank,
    parsed,
    read_message,
    untrained_reason,
    with_parsed,
    with_words,
)

DEFAULT_ROLES = {
    "system": ["system", "developer"],
    "user": ["user", "human"],
    "assistant": ["assistant", "gpt"],
    "tool": ["tool", "function"],
}

SYSTEM_COLUMN = "system"
"""Axolotl reads a row's system prompt here, whatever the YAML says."""

THINKING = "reasoning_content"
"""Axolotl's default of `field_thinking` and `template_thinking_key`."""

BEHIND = "a turn behind a bad message"
"""The kind of fault of turns that would be fine by themselves."""


class Conversation(NamedTuple):
    """An assistant turn, the annotated response, and the messages before it."""

    prompt: list[dict[str, Any]]
    response: dict[str, Any]


class RowReader:
    """Reads one data set's rows.

    Args:
        source: name of the data set in errors, usually its path.
        message_keys: `message_property_mappings`, from a template's names of a message's keys to
            the data's. Where role and content have OpenAI's names, ShareGPT's are read too.
        roles: Axolotl's `roles`, target role → names in the data; joined with the usual names.
        drop_system_message: leave out the system message that begins a conversation.
        thinking: Axolotl's `template_thinking_key`, the template's key of a thought.
        split_thinking: Axolotl's key: split thoughts from an assistant's words at their tags.
        field_training: Axolotl's `message_field_training`, the key that says whether a turn is
            trained on.
        field_training_detail: Axolotl's `message_field_training_detail`, the key with the spans of
            a turn that are trained on.
    """

    def __init__(
        self,
        source: str,
        *,
        message_keys: Mapping[str, str] | None = None,
        roles: Mapping[str, list[str]] | None = None,
        drop_system_message: bool = False,
        thinking: str = THINKING,
        split_thinking: bool = False,
        field_training: str | None = None,
        field_training_detail: str | None = None,
    ) -> None:
        self.source = source
        names = [*DEFAULT_ROLES.items(), *(roles or {}).items()]
        self.drop_system_message = drop_system_message
        self._format = MessageFormat(
            keys=OPENAI | dict(message_keys or {}),
            role_of={name: role for role, of_role in names for name in of_role},
            thinking=thinking,
            split_thinking=split_thinking,
            training=field_training,
            training_detail=field_training_detail,
        )

    def error(self, row: int, column: str, problem: str, kind: str) -> BadRow:
        """Make the error of a row; `kind` is the fault as `BadRow` counts it."""
        return self._place(row, column).error(problem, kind)

    def _place(self, row: int, column: str) -> Place:
        return Place(self.source, row, column)

    def text(self, row: int, column: str, value: Any, *, may_be_blank: bool = False) -> str:
        """Read a column of text; anything else is an error, as is blank text by default."""
        return checked_text(self._place(row, column), value, may_be_blank=may_be_blank)

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
        place = self._place(row, column)
        if isinstance(value, list):
            messages = self._up_to_response(place, value)
            _check_prompt(place, messages[:-1], prompt)
            message, place = messages[-1], place.at(f"[{len(messages) - 1}]")
        elif isinstance(value, Mapping):
            (item,) = _without_nested_nulls([value])
            message = read_message(place, 0, item, self._format)
            if message["role"] != "assistant":
                raise place.error(
                    f"expected an assistant message, found one of '{message['role']}'",
                    "no assistant turn",
                )
        else:
            message = {"role": "assistant", "content": value}
            message = with_words(place, message, self._format)
        _check_content(place, message, blank=may_be_blank)
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

    def conversation(
        self,
        row: int,
        column: str,
        value: Any,
        system: Any = None,
        *,
        turn: Literal["first", "last"] = "last",
    ) -> Conversation:
        """Read the conversation of the first or the last assistant turn; see `conversations`.

        Raises:
            BadRow: it cannot be trained on.
            UntrainedRow: the data set excludes the turn from training.
        """
        found = self.conversations(row, column, value, system)
        if turn == "last":
            # The fault that is behind all others' is told, and not that turns are behind it.
            found = [item for item in found if getattr(item, "kind", None) != BEHIND]
        conversation = found[0 if turn == "first" else -1]
        if isinstance(conversation, BadRow):
            raise conversation
        return conversation

    def conversations(
        self, row: int, column: str, value: Any, system: Any = None
    ) -> list[Conversation | BadRow]:
        """Read messages in OpenAI's or ShareGPT's shape: each assistant turn with the conversation
        before it, or the error of one that cannot be trained on. Behind a message that cannot be
        read, every assistant turn is an error. Messages after the last assistant turn are left out.

        Args:
            system: the row's column "system", which comes before a conversation that does not
                begin with a system message, as Axolotl has it; None for none.
        """
        found: list[Conversation | BadRow] = []
        place = self._place(row, column)
        try:
            found.extend(self._turns(place, value, system))
        except BadRow as error:
            behind = place.error("a turn is behind a message that cannot be read", BEHIND)
            found.append(error)
            found += [behind] * (self._count_turns(place, value) - len(found))
        return found

    def _count_turns(self, place: Place, value: Any) -> int:
        """Count the assistant turns, and the messages that cannot be read; 0 if there are none."""
        count = 0
        with contextlib.suppress(BadRow):
            for index, item in enumerate(_messages(place, value)):
                try:
                    message = read_message(place, index, item, self._format)
                    count += message["role"] == "assistant"
                except BadRow:
                    count += 1
        return count

    def _turns(self, place: Place, value: Any, system: Any) -> Iterator[Conversation | BadRow]:
        """Yield each assistant turn; an error that is raised is that of all later turns."""
        prompt: list[dict[str, Any]] = []
        since: list[tuple[int, dict[str, Any]]] = []
        has_turns = False
        for index, item in enumerate(_messages(place, value)):
            message = read_message(place, index, item, self._format)
            if index == 0:
                begins_with_system = message["role"] == "system"
                if begins_with_system and self.drop_system_message:
                    continue
                if system is not None and not (begins_with_system or self.drop_system_message):
                    prompt.append(self._system_message(place, system))
            since.append((index, message))
            if message["role"] != "assistant":
                continue
            for number, said in since:
                _check_content(place.at(f"[{number}]"), said)
            prompt += [said for _, said in since[:-1]]
            yield self._conversation(place.at(f"[{index}]"), prompt, message, item)
            prompt.append(message)
            since, has_turns = [], True
        if not has_turns:
            raise _no_assistant_turn(place)

    def _system_message(self, place: Place, system: Any) -> dict[str, Any]:
        place = place._replace(column=SYSTEM_COLUMN)
        return {"role": "system", "content": checked_text(place, system, may_be_blank=True)}

    def _conversation(
        self,
        place: Place,
        prompt: Sequence[dict[str, Any]],
        response: dict[str, Any],
        item: Mapping[str, Any],
    ) -> Conversation | BadRow:
        try:
            reason = untrained_reason(place, item, response, self._format)
        except BadRow as error:
            return error
        if reason:
            return UntrainedRow(f"{place.source}: row {place.row}: {reason}", reason)
        if not any(message["role"] != "system" for message in prompt):
            return place.error("nothing comes before the assistant turn: no prompt", "no prompt")
        return Conversation(list(prompt), response)

    def tools(self, row: int, column: str, value: Any) -> list[dict[str, Any]] | None:
        """Read a conversation's tools: a list, or one as JSON text; None if there are none."""
        place = self._place(row, column)
        tools = parsed(place, remove_none_values(value))
        return with_parsed(place, tools, "parameters") if tools else None

    def _up_to_response(self, place: Place, value: Any) -> list[dict[str, Any]]:
        """Read a list of messages up to its last assistant turn."""
        messages = [
            read_message(place, index, item, self._format)
            for index, item in enumerate(_messages(place, value))
        ]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise _no_assistant_turn(place)
        return messages[: turns[-1] + 1]


def _messages(place: Place, value: Any) -> list[Any]:
    """Read a list of messages, or one as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(place, value)
    elif isinstance(value, list):
        value = _without_nested_nulls(value)
    if not isinstance(value, list) or not value:
        raise place.error(
            f"expected a list of messages, found {kind_of(value)}; name the right column with "
            "`field_messages`",
            "no list of messages",
        )
    return value


def _without_nested_nulls(messages: Sequence[Any]) -> list[Any]:
    """Leave out nulls within the values of messages: a data set gives every object the keys of all.
    JSON text has its own nulls only."""
    return [
        {key: remove_none_values(item) for key, item in message.items()}
        if isinstance(message, Mapping)
        else message
        for message in messages
    ]


def _no_assistant_turn(place: Place) -> BadRow:
    return place.error(
        "the conversation has no assistant turn, so there is no annotated response; drop the row, "
        "or name the data's assistant role with `roles: {assistant: [...]}`",
        "no assistant turn",
    )


def _check_content(place: Place, message: Mapping[str, Any], *, blank: bool = False) -> None:
    """Refuse content that a template would render as nothing, or not at all."""
    checked_text(place, message["content"], may_be_blank=blank or may_be_blank(message))


def _check_prompt(
    place: Place, messages: Sequence[Mapping[str, Any]], prompt: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse a response to another prompt; without messages it is only the response."""
    answered, expected = _without_system(messages), _without_system(prompt)
    if answered and expected and answered != expected:
        raise place.error(
            f"its response answers {answered[-1]!r:.60}, the annotated one answers "
            f"{expected[-1]!r:.60}; all responses of a row must answer one prompt, so drop the row",
            "responses to different prompts",
        )


def _without_system(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """The turns of a prompt, without system messages, which one column may leave out."""
    return [(m["role"], m["content"]) for m in messages if m["role"] != "system"]
