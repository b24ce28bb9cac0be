"""Prompts and responses as token ids: one rule for training and for generation.

A prompt is rendered with the template's generation prompt and tokenised alone, exactly as an
engine gets it; a response is tokenised alone as its continuation, so that the same text is the
same tokens after every prompt. A response ends with the template's end-of-turn token unless it
was cut.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from axolotl_tspin.errors import TSpinError

PAPER_TEMPLATE = "### Instruction: {prompt}\n\n### Response: "
"""The prompt template of the paper's experiments (section B.1)."""

PROBE = "T-SPIN probe"
SENTINEL = "\n"


class EncodedPrompt(NamedTuple):
    """A prompt as the text and the token ids that a policy continues."""

    text: str
    ids: list[int]


class ResponseTokenizer:
    """Tokenises text as the continuation of a prompt.

    Sentencepiece-style tokenizers put a space before a text's first word. A continuation has no
    such space, so with them a text is tokenised behind a newline, whose tokens are taken off.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._sentinel_ids = self._plain(SENTINEL)
        behind = self._plain(SENTINEL + "a")
        self._adds_prefix = behind[: len(self._sentinel_ids)] == self._sentinel_ids and behind[
            len(self._sentinel_ids) :
        ] != self._plain("a")

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def __call__(self, text: str) -> list[int]:
        if self._adds_prefix:
            ids = self._plain(SENTINEL + text)
            if ids[: len(self._sentinel_ids)] == self._sentinel_ids:
                return ids[len(self._sentinel_ids) :]
        return self._plain(text)


class TemplateEncoder:
    """Encodes under a plain text template with the field `{prompt}`.

    Args:
        template: such as `PAPER_TEMPLATE`.
        eot_tokens: Axolotl's `eot_tokens`; the first ends a response, else the end-of-text token.

    Raises:
        TSpinError: the template has no `{prompt}`, or the tokenizer has no end-of-text token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = PAPER_TEMPLATE,
        eot_tokens: Sequence[str] | None = None,
    ) -> None:
        if template.count("{prompt}") != 1:
            raise TSpinError(
                f"`prompt_template: {template!r}` must contain {{prompt}} exactly once"
            )
        self._tokenizer = tokenizer
        self._template = template
        self._continuation = ResponseTokenizer(tokenizer)
        self.end_ids = [_eot_id(tokenizer, eot_tokens)]

    def prompt(self, prompt: str) -> EncodedPrompt:
        text = self._template.replace("{prompt}", prompt)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return EncodedPrompt(text, [*_beginning(self._tokenizer), *ids])

    def response(self, text: str, *, ended: bool = True) -> list[int]:
        return self._continuation(text) + (self.end_ids if ended else [])


class ChatEncoder:
    """Encodes under a chat template.

    Args:
        chat_template: the Jinja source.
        eot_tokens: Axolotl's `eot_tokens`, for templates whose end of turn is no special token.
        source: what errors call the data set.

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
        source: str = "the data set",
    ) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template
        self._kwargs = template_kwargs or {}
        self._source = source
        self._continuation = ResponseTokenizer(tokenizer)
        self._suffix, self.end_ids = self._end_of_turn(eot_tokens)

    def prompt(
        self, messages: list[dict[str, Any]], tools: list[Any] | None = None
    ) -> EncodedPrompt:
        text = self._render(messages, tools, add_generation_prompt=True)
        return EncodedPrompt(text, self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def response(
        self,
        messages: list[dict[str, Any]],
        response: dict[str, Any] | str,
        *,
        ended: bool = True,
        tools: list[Any] | None = None,
    ) -> list[int]:
        """Token ids of an assistant turn after `messages`, as the template renders it."""
        if isinstance(response, str):
            response = {"role": "assistant", "content": response}
        prompt = self._render(messages, tools, add_generation_prompt=True)
        whole = self._render([*messages, response], tools, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise TSpinError(
                f"{self._source}: the chat template renders the generation prompt as "
                f"{prompt[-60:]!r}, but does not begin the assistant's turn so; T-SPIN needs the "
                "same prompt in training and generation. Give a template for which both agree "
                "with `chat_template: jinja` and `chat_template_jinja`"
            )
        text = whole[len(prompt) :].removesuffix(self._suffix)
        return self._continuation(text) + (self.end_ids if ended else [])

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        text = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self._template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self._kwargs,
        )
        assert isinstance(text, str)
        return text

    def _end_of_turn(self, eot_tokens: Sequence[str] | None) -> tuple[str, list[int]]:
        """What the template puts after an assistant's words, as text, and the token ids of it up
        to the end-of-turn token (the end-of-text token, where the template has none)."""
        conversation = [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": PROBE},
        ]
        whole = self._render(conversation, None, add_generation_prompt=False)
        if PROBE not in whole:
            raise TSpinError(f"{self._source}: the chat template leaves out the assistant's words")
        suffix = whole.rpartition(PROBE)[2]
        ids = self._continuation(suffix)
        ends = {_token_id(self._tokenizer, token) for token in eot_tokens or ()}
        ends = ends or {*self._tokenizer.all_special_ids, *_special_added_ids(self._tokenizer)}
        for position, token in enumerate(ids):
            if token in ends:
                return suffix, ids[: position + 1]
        return suffix, [_eot_id(self._tokenizer, eot_tokens)]


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin-of-text token, where the tokenizer puts one before a text."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise TSpinError(
            f"`eot_tokens`: {token!r} is {len(ids)} tokens of this tokenizer, not one; add it "
            "with `tokens:` or name another"
        )
    return ids[0]


def _special_added_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]


def _eot_id(tokenizer: PreTrainedTokenizerBase, eot_tokens: Sequence[str] | None) -> int:
    if eot_tokens:
        return _token_id(tokenizer, eot_tokens[0])
    if tokenizer.eos_token_id is None:
        raise TSpinError(
            "the tokenizer has no end-of-text token to end a response with; name one in the YAML: "
            "special_tokens: {eos_token: <a token of the vocabulary>}"
        )
    return tokenizer.eos_token_id
