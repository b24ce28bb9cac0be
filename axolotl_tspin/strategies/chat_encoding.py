"""Conversations as prompts and responses, under a chat template."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from axolotl_tspin.errors import BadRow, TSpinError
from axolotl_tspin.strategies.encoding import Continuation, Encoder, RowText
from axolotl_tspin.strategies.left_out import PROBE, REASONING_KEYS, left_out
from axolotl_tspin.strategies.turn_end import (
    TurnEnd,
    common_length,
    find_turn_end,
    token_text,
    without_own_end,
)

ENDED_AT_ONCE = {"role": "assistant", "content": ""}
"""A sampled turn without words. It is only the end of turn, even if a template would put something
around an empty text (a space, say, that the policy did not sample)."""

Messages = Sequence[Mapping[str, Any]]

QUESTION = {"role": "user", "content": "Hello."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_number",
            "description": "Find a number.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
CALLED = PROBE.replace(" ", "_")
# Mistral's templates want ids of nine letters.
CALL = {"id": "call00001", "type": "function", "function": {"name": CALLED, "arguments": {"a": 1}}}
RESULT = {"role": "tool", "name": CALLED, "tool_call_id": "call00001", "content": "1"}


class CallsForm(NamedTuple):
    """How a template wants a turn with tool calls: the content beside them if there are no words,
    and their arguments as JSON text or as an object."""

    no_content: str | None
    text_arguments: bool


CALLS_FORMS = [CallsForm(content, text) for text in (False, True) for content in ("", None)]


class ChatEncoder(Encoder):
    """Encodes under a chat template.

    Args:
        chat_template: the Jinja source.
        eot_tokens: Axolotl's `eot_tokens`, for templates whose end of turn is not a special token.
        model_ends: the end tokens of the model's generation configuration.
        reasoning_key: the key of a message under which the template expects its reasoning.
        source: name of the data set in errors.

    Raises:
        TSpinError: the template cannot be rendered, or does not continue its generation prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str,
        *,
        template_kwargs: dict[str, Any] | None = None,
        eot_tokens: Sequence[str] | None = None,
        model_ends: Collection[int] = (),
        reasoning_key: str = REASONING_KEYS[0],
        source: str = "the data set",
    ) -> None:
        super().__init__(tokenizer, [])
        self._template = chat_template
        self._kwargs = template_kwargs or {}
        self._reasoning_key = reasoning_key
        self._source = source
        self._calls_form = CALLS_FORMS[0]
        self._end = self._end_of_words(eot_tokens or (), model_ends)
        self._end_of_calls = self._end_behind_calls(eot_tokens or (), model_ends)
        ends = [end for end in (self._end, self._end_of_calls) if end]
        self._set_ends(ends, eot_tokens or (), model_ends)

    def text(
        self,
        messages: Messages,
        responses: Sequence[tuple[dict[str, Any] | str, bool]],
        tools: list[Any] | None = None,
        *,
        where: str | None = None,
    ) -> RowText:
        """Render messages and the assistant turns (or their words) after them.

        Args:
            where: names the row in errors; by default only the source.

        Raises:
            BadRow: the template refuses the messages, leaves out a part of a response, or does not
                continue its generation prompt.
        """
        where = where or self._source
        turns = [
            {"role": "assistant", "content": turn} if isinstance(turn, str) else turn
            for turn, _ in responses
        ]
        prompt = self._render(messages, tools, where, add_generation_prompt=True)
        continuations = [
            self._continuation_of(prompt, messages, turn, tools, ended=ended, where=where)
            for turn, (_, ended) in zip(turns, responses, strict=True)
        ]
        return RowText(
            prompt, [*map(dict, messages)], continuations, self._left_out(prompt, messages, tools)
        )

    def _continuation_of(
        self,
        prompt: str,
        messages: Messages,
        turn: dict[str, Any],
        tools: list[Any] | None,
        *,
        ended: bool,
        where: str,
    ) -> Continuation:
        end = (self._end_of_calls if turn.get("tool_calls") else None) or self._end
        if ended and turn["content"]:
            turn = {**turn, "content": without_own_end(turn["content"], self._ends)}
        if turn == ENDED_AT_ONCE:
            return Continuation(end.text, end.ids) if ended else Continuation("", ())
        if not ended and (thought := _cut_thought(turn["content"] or "", prompt)):
            return Continuation(thought, ())
        text = self._continued(prompt, messages, turn, tools, where)
        self._check_complete(messages, turn, tools, where)
        if text.endswith(end.text + end.tail):
            text = text.removesuffix(end.tail)
        if not ended:
            return Continuation(text.removesuffix(end.text), ())
        return Continuation(text, end.ids)

    def _continued(
        self,
        prompt: str,
        messages: Messages,
        turn: dict[str, Any],
        tools: list[Any] | None,
        where: str,
    ) -> str:
        """Render a turn behind its prompt."""
        whole = self._render([*messages, turn], tools, where, add_generation_prompt=False)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        same = common_length(prompt, whole)
        seen = f"{prompt[max(same - 20, 0) : same + 40]!r}"
        answered = f"{whole[max(same - 20, 0) : same + 40]!r}"
        rest = [message for message in messages if message["role"] != "system"]
        bare = self._rendered_or_nothing(rest, tools, add_generation_prompt=True)
        kept = self._rendered_or_nothing([*rest, turn], tools).startswith(bare)
        if len(rest) < len(messages) and bare and kept:
            raise BadRow(
                f"{where}: the chat template moves the system message once the prompt is "
                f"answered: the prompt has {seen}, the conversation {answered}. Leave system "
                "messages out with `drop_system_message: true`, or give a template that keeps "
                "their place with `chat_template: jinja` and `chat_template_jinja`",
                "a system message that the template moves",
            )
        raise BadRow(
            f"{where}: the chat template's generation prompt ends in {prompt[-60:]!r}, but the "
            f"assistant's turn does not begin so: the prompt has {seen}, the conversation "
            f"{answered}. T-SPIN needs the same prompt in training and generation. Give a "
            "template in which both agree with `chat_template: jinja` and `chat_template_jinja`",
            "a prompt that the template changes once it is answered",
        )

    def _check_complete(
        self, messages: Messages, turn: dict[str, Any], tools: list[Any] | None, where: str
    ) -> None:
        """Refuse a response of which the template leaves something out."""

        def render(turns: Sequence[Mapping[str, Any]]) -> str:
            return self._rendered_or_nothing([*messages, *turns], tools)

        for _, name in left_out([turn], render, reasoning_key=self._reasoning_key):
            remedy = (
                "name the key that the template reads with `template_thinking_key` and the data's "
                "with `field_thinking`, or give a template that keeps it"
                if name == "reasoning"
                else "drop the row, or give a template that has it"
            )
            raise BadRow(
                f"{where}: the chat template leaves out the response's {name}; {remedy} with "
                "`chat_template: jinja` and `chat_template_jinja`",
                f"{name} of the response that the template leaves out",
            )

    def _left_out(
        self, prompt: str, messages: Messages, tools: list[Any] | None
    ) -> tuple[str, ...]:
        """Name what the template leaves out of a prompt."""

        def render(turns: Sequence[Mapping[str, Any]], tools: list[Any] | None = tools) -> str:
            return self._rendered_or_nothing(turns, tools, add_generation_prompt=True)

        found = left_out(messages, render, reasoning_key=self._reasoning_key)
        missing = [f"{name} of {messages[index]['role']} turns" for index, name in found]
        if tools and prompt == render(messages, None):
            missing.append("tools")
        return tuple(dict.fromkeys(missing))

    def _render(
        self,
        messages: Messages,
        tools: list[Any] | None,
        where: str,
        *,
        add_generation_prompt: bool,
    ) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [self._shown(message) for message in messages],
                tools=tools,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self._kwargs,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise BadRow(
                f"{where}: the chat template cannot render messages of the roles {roles}: {error}. "
                "Fix or drop the row, or give a template that can with `chat_template: jinja` and "
                "`chat_template_jinja`",
                "messages that the template cannot render",
            ) from error
        assert isinstance(text, str)
        return text

    def _shown(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Give a message with tool calls the form in which the template shows them."""
        if not message.get("tool_calls"):
            return dict(message)
        calls = message["tool_calls"]
        if self._calls_form.text_arguments:
            calls = [_with_text_arguments(call) for call in calls]
        content = message.get("content") or self._calls_form.no_content
        return {**message, "content": content, "tool_calls": calls}

    def _rendered_or_nothing(
        self, messages: Messages, tools: list[Any] | None, *, add_generation_prompt: bool = False
    ) -> str:
        """Render only to compare; nothing is refused for it."""
        try:
            return self._render(
                messages, tools, self._source, add_generation_prompt=add_generation_prompt
            )
        except BadRow:
            return ""

    def _end_of_words(self, eot_tokens: Sequence[str], model_ends: Collection[int]) -> TurnEnd:
        turn = {"role": "assistant", "content": PROBE}
        last = self._render([QUESTION, turn], None, self._source, add_generation_prompt=False)
        if PROBE not in last:
            raise TSpinError(f"{self._source}: the chat template leaves out the assistant's words")
        followed = self._rendered_or_nothing([QUESTION, turn, QUESTION], None)
        return self._found_end(last, followed, PROBE, eot_tokens, model_ends)

    def _end_behind_calls(
        self, eot_tokens: Sequence[str], model_ends: Collection[int]
    ) -> TurnEnd | None:
        """Find the end of a turn with tool calls, and the form in which it shows them; None if the
        template has no tool calls."""
        turn = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        for self._calls_form in CALLS_FORMS:
            last = self._rendered_or_nothing([QUESTION, turn], TOOLS)
            if CALLED in last and "None" not in last:
                followed = self._rendered_or_nothing([QUESTION, turn, RESULT], TOOLS)
                end = self._found_end(last, followed, CALLED, eot_tokens, model_ends)
                if not end.text:
                    return TurnEnd("", "", end.ids)
                # The text before the last token holds the probe's arguments.
                return TurnEnd(token_text(self._tokenizer, end.ids[-1]), end.tail, end.ids[-1:])
        self._calls_form = CALLS_FORMS[0]
        return None

    def _found_end(
        self,
        last: str,
        followed: str,
        probe: str,
        eot_tokens: Sequence[str],
        model_ends: Collection[int],
    ) -> TurnEnd:
        times = last.count(probe)
        return find_turn_end(
            last.rpartition(probe)[2],
            "".join(followed.split(probe, times)[times:]),
            self._tokenizer,
            eot_tokens=eot_tokens,
            model_ends=model_ends,
        )


def _cut_thought(words: str, prompt: str) -> str:
    """Get words that were cut within their thought, which a template would take for an answer
    without a thought; "" if they were not."""
    if "<think>" not in words or "</think>" in words:
        return ""
    begun = prompt.rstrip().endswith("<think>")
    return words.lstrip().removeprefix("<think>").lstrip("\n") if begun else words


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function.get("arguments"), Mapping):
        return dict(call)
    text = json.dumps(function["arguments"], ensure_ascii=False)
    function = {**function, "arguments": text}
    return {**call, "function": function} if "function" in call else function
