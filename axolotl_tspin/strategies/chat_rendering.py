"""Rendering of conversations under a chat template."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from axolotl_tspin.errors import BadRow

Messages = Sequence[Mapping[str, Any]]


class CallsForm(NamedTuple):
    """How a template wants a turn with tool calls: the content beside them if there are no words,
    and their arguments as JSON text or as an object."""

    no_content: str | None
    text_arguments: bool


CALLS_FORMS = [CallsForm(content, text) for text in (False, True) for content in ("", None)]


class ChatRenderer:
    """Renders messages under one template.

    Args:
        chat_template: the Jinja source.
        source: name of the data set in errors.

    Attributes:
        calls_form: the form in which tool calls are given to the template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str,
        template_kwargs: Mapping[str, Any],
        source: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template
        self.template_kwargs = template_kwargs
        self.source = source
        self.calls_form = CALLS_FORMS[0]

    def render(
        self,
        messages: Messages,
        tools: list[Any] | None,
        where: str | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render messages.

        Args:
            where: names the row in the error; by default only the source.

        Raises:
            BadRow: the template cannot render them.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [self._shown(message) for message in messages],
                tools=tools,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self.template_kwargs,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise BadRow(
                f"{where or self.source}: the chat template cannot render messages of the roles "
                f"{roles}: {error}. Fix or drop the row, or give a template that can with "
                "`chat_template: jinja` and `chat_template_jinja`",
                "messages that the template cannot render",
            ) from error
        assert isinstance(text, str)
        return text

    def rendered_or_nothing(
        self, messages: Messages, tools: list[Any] | None, *, add_generation_prompt: bool = False
    ) -> str:
        """Render only to compare; nothing is refused for it."""
        try:
            return self.render(messages, tools, add_generation_prompt=add_generation_prompt)
        except BadRow:
            return ""

    def _shown(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Give a message with tool calls the form in which the template shows them."""
        if not message.get("tool_calls"):
            return dict(message)
        calls = message["tool_calls"]
        if self.calls_form.text_arguments:
            calls = [_with_text_arguments(call) for call in calls]
        content = message.get("content") or self.calls_form.no_content
        return {**message, "content": content, "tool_calls": calls}


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function.get("arguments"), Mapping):
        return dict(call)
    text = json.dumps(function["arguments"], ensure_ascii=False)
    function = {**function, "arguments": text}
    return {**call, "function": function} if "function" in call else function
