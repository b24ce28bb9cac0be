"""Conversations as prompts and responses, under a chat template."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from axolotl_tspin.errors import BadRow
from axolotl_tspin.strategies.chat_rendering import ChatRenderer, Messages
from axolotl_tspin.strategies.encoding import Continuation, Encoder, RowText
from axolotl_tspin.strategies.left_out import REASONING_KEYS, left_out
from axolotl_tspin.strategies.turn_end import common_length, without_own_end
from axolotl_tspin.strategies.turn_probes import find_ends

ENDED_AT_ONCE = {"role": "assistant", "content": ""}
"""A sampled turn without words. It is only the end of turn, even if a template would put something
around an empty text (a space, say, that the policy did not sample)."""


class Asked(NamedTuple):
    """A row's prompt, as messages and rendered.

    Attributes:
        where: names the row in errors.
    """

    messages: Messages
    tools: list[Any] | None
    prompt: str
    where: str


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
        self._chat = ChatRenderer(tokenizer, chat_template, template_kwargs or {}, source)
        self._reasoning_key = reasoning_key
        ends = find_ends(self._chat, tokenizer, eot_tokens or (), model_ends)
        self._end, self._end_of_calls = ends[0], ends[1] or ends[0]
        self._set_ends([end for end in ends if end], eot_tokens or (), model_ends)

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
                continue its generation prompt; or a response goes on after its end.
        """
        where = where or self._chat.source
        turns = [
            {"role": "assistant", "content": turn} if isinstance(turn, str) else turn
            for turn, _ in responses
        ]
        prompt = self._chat.render(messages, tools, where, add_generation_prompt=True)
        asked = Asked(messages, tools, prompt, where)
        continuations: list[Continuation] = []
        missing: list[str] = []
        for turn, (_, ended) in zip(turns, responses, strict=True):
            thought = "" if ended else _cut_thought(turn, prompt)
            if thought:
                continuations.append(Continuation(thought, ()))
                continue
            continuations.append(self._response(asked, turn, ended))
            missing = self._left_out(asked, turn) or missing
        if tools and prompt == self._chat.rendered_or_nothing(
            messages, None, add_generation_prompt=True
        ):
            missing.append("tools")
        return RowText(prompt, [*map(dict, messages)], continuations, tuple(missing))

    def _response(self, asked: Asked, turn: dict[str, Any], ended: bool) -> Continuation:
        end = self._end_of_calls if turn.get("tool_calls") else self._end
        if ended and turn["content"]:
            turn = {**turn, "content": without_own_end(turn["content"], self._ends)}
        if turn == ENDED_AT_ONCE:
            return Continuation(end.text, end.ids) if ended else Continuation("", ())
        text = self._continued(asked, turn)
        body, found, tail = text.rpartition(end.text) if end.text else (text, "", "")
        if not found or (tail != end.tail and tail.strip()):
            body, found = text.removesuffix(end.tail), ""
        self._check_no_end_within(body, asked.where)
        return Continuation(body + found, end.ids) if ended else Continuation(body, ())

    def _continued(self, asked: Asked, turn: dict[str, Any]) -> str:
        """Render a turn behind its prompt."""
        messages, tools, prompt, where = asked
        whole = self._chat.render([*messages, turn], tools, where)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        same = common_length(prompt, whole)
        seen = f"{prompt[max(same - 20, 0) : same + 40]!r}"
        answered = f"{whole[max(same - 20, 0) : same + 40]!r}"
        rest = [message for message in messages if message["role"] != "system"]
        bare = self._chat.rendered_or_nothing(rest, tools, add_generation_prompt=True)
        kept = self._chat.rendered_or_nothing([*rest, turn], tools).startswith(bare)
        if len(rest) < len(messages) and bare and kept:
            raise BadRow(
                f"{where}: the chat template moves the system message once the prompt is "
                f"answered: the prompt has {seen}, the conversation {answered}. Leave system "
                "messages out with `drop_system_message: true`, or give a template that keeps "
                "their place with `chat_template: jinja` and `chat_template_jinja`",
                "a system message that the template moves",
            )
        kwargs = dict(self._chat.template_kwargs)
        settings = (
            f", other `chat_template_kwargs` than {kwargs}, or drop the row" if kwargs else ""
        )
        raise BadRow(
            f"{where}: the chat template's generation prompt ends in {prompt[-60:]!r}, but the "
            f"assistant's turn does not begin so: the prompt has {seen}, the conversation "
            f"{answered}. T-SPIN needs the same prompt in training and generation. Give a "
            "template in which both agree with `chat_template: jinja` and `chat_template_jinja`"
            f"{settings}",
            "a prompt that the template changes once it is answered",
        )

    def _left_out(self, asked: Asked, turn: dict[str, Any]) -> list[str]:
        """Name what the template leaves out of a prompt, once each.

        Raises:
            BadRow: it leaves out a part of the response.
        """

        def render(turns: Messages) -> str:
            return self._chat.rendered_or_nothing(turns, asked.tools)

        messages = asked.messages
        missing = []
        for index, name in left_out([*messages, turn], render, reasoning_key=self._reasoning_key):
            if index < len(messages):
                missing.append(f"{name} of {messages[index]['role']} turns")
                continue
            remedy = (
                "name the key that the template reads with `template_thinking_key` and the data's "
                "with `field_thinking`, or give a template that keeps it"
                if name == "reasoning"
                else "drop the row, or give a template that has it"
            )
            raise BadRow(
                f"{asked.where}: the chat template leaves out the response's {name}; {remedy} with "
                "`chat_template: jinja` and `chat_template_jinja`",
                f"{name} of the response that the template leaves out",
            )
        return list(dict.fromkeys(missing))


def _cut_thought(turn: dict[str, Any], prompt: str) -> str:
    """Get a plain turn's words that were cut within their thought, which a template would take for
    an answer without a thought; "" if they were not."""
    words = turn["content"]
    if not words or "</think>" in words or turn.keys() != ENDED_AT_ONCE.keys():
        return ""
    if prompt.rstrip().endswith("<think>"):
        head, tag, rest = words.partition("<think>")
        return rest.lstrip("\n") if tag and not head.strip() else words
    return words if "<think>" in words else ""
