"""Prompts and responses as token ids: one rule for training and for generation.

A prompt is rendered with the template's generation prompt and tokenised alone, exactly as an
engine gets it. A response is tokenised alone, as the continuation, so the same text gives the same
tokens after every prompt. A response ends with the template's end-of-turn token unless it was cut.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from axolotl_tspin.errors import BadRow, TSpinError

PAPER_TEMPLATE = "### Instruction: {prompt}\n\n### Response: "
"""The prompt template of the paper's experiments (section B.1)."""

ENDED_AT_ONCE = {"role": "assistant", "content": ""}
"""A sampled turn without words. It is only the end of turn, even if a template would put something
around an empty text (a space, say, that the policy did not sample)."""

PROBE = "T-SPIN probe"
SENTINEL = "\n"


class RowText(NamedTuple):
    """A row as text.

    Attributes:
        prompt: the rendered prompt, which the policy continues.
        messages: the prompt as the data set had it; None for plain text.
        annotated: the annotated response's words, or all that the template renders of it if that is
            more (tool calls, reasoning).
        responses: each response as a continuation, the annotated one first, and whether it ended by
            itself.
    """

    prompt: str
    messages: list[dict[str, Any]] | None
    annotated: str
    responses: list[tuple[str, bool]]


class Triplet(NamedTuple):
    """One row, encoded. The generation step has no synthetic and proto-synthetic responses yet.

    Attributes:
        prompt_text, annotated_text: texts for people who read the run directory.
        messages: the prompt as the data set had it; None for plain text.
        end_id: the end-of-turn token, at which sampling stops.
        reference_logps: the three responses' log-probabilities under the frozen policy, for methods
            with a reference.
    """

    prompt_text: str
    messages: list[dict[str, Any]] | None
    prompt: list[int]
    annotated_text: str
    end_id: int
    annotated: list[int]
    synthetic: list[int] | None = None
    proto_synthetic: list[int] | None = None
    reference_logps: list[float] | None = None


class ResponseTokenizer:
    """Tokenises text as the continuation of a prompt.

    Sentencepiece-style tokenizers put a space before a text's first word. A continuation has no
    such space, so they tokenise a text after a newline, whose tokens are then removed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._sentinel_ids = self._plain(SENTINEL)
        behind = self._plain(SENTINEL + "a")
        self._adds_prefix = behind[: len(self._sentinel_ids)] == self._sentinel_ids and behind[
            len(self._sentinel_ids) :
        ] != self._plain("a")

    def _plain(self, text: str) -> list[int]:
        return self._all_plain([text])[0]

    def _all_plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def __call__(self, text: str) -> list[int]:
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise each text."""
        if not self._adds_prefix:
            return self._all_plain(texts)
        sentinel = self._sentinel_ids
        return [
            ids[len(sentinel) :] if ids[: len(sentinel)] == sentinel else self._plain(text)
            for text, ids in zip(texts, self._all_plain([SENTINEL + t for t in texts]), strict=True)
        ]


class Encoder:
    """Tokenises rows of text, many at once; its subclasses turn rows into text.

    Attributes:
        end_ids: tokens that end a response; the last of them is the end-of-turn token.
    """

    end_ids: list[int]

    def __init__(self, tokenizer: PreTrainedTokenizerBase, beginning: list[int]) -> None:
        self._tokenizer = tokenizer
        self._beginning = beginning
        self._continuation = ResponseTokenizer(tokenizer)

    def triplets(self, rows: Sequence[RowText]) -> list[Triplet]:
        """Encode rows as token ids, each prompt tokenised once."""
        if not rows:
            return []
        prompts = self._tokenizer([row.prompt for row in rows], add_special_tokens=False)
        texts = [text for row in rows for text, _ in row.responses]
        continuations = iter(self._continuation.batch(texts))
        triplets = []
        for row, prompt in zip(rows, prompts["input_ids"], strict=True):
            annotated, *generated = (
                next(continuations) + (self.end_ids if ended else []) for _, ended in row.responses
            )
            synthetic, proto_synthetic = generated or (None, None)
            triplets.append(
                Triplet(
                    row.prompt,
                    row.messages,
                    [*self._beginning, *prompt],
                    row.annotated,
                    self.end_ids[-1],
                    annotated,
                    synthetic,
                    proto_synthetic,
                )
            )
        return triplets


class TemplateEncoder(Encoder):
    """Encodes under a plain text template with the field `{prompt}`.

    Args:
        template: the template, such as `PAPER_TEMPLATE`.
        eot_tokens: Axolotl's `eot_tokens`; the first ends a response. Without any, the end-of-text
            token does.

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
        super().__init__(tokenizer, _beginning(tokenizer))
        self._template = template
        self.end_ids = [_eot_id(tokenizer, eot_tokens)]

    def text(self, prompt: str, responses: list[tuple[str, bool]]) -> RowText:
        """Make a row from a prompt and its responses' words."""
        text = self._template.replace("{prompt}", prompt)
        return RowText(text, None, responses[0][0], responses)


class ChatEncoder(Encoder):
    """Encodes under a chat template.

    Args:
        chat_template: the Jinja source.
        eot_tokens: Axolotl's `eot_tokens`, for templates whose end of turn is not a special token.
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
        source: str = "the data set",
    ) -> None:
        super().__init__(tokenizer, [])
        self._template = chat_template
        self._kwargs = template_kwargs or {}
        self._source = source
        self._suffix, self.end_ids = self._end_of_turn(eot_tokens)

    def text(
        self,
        messages: list[dict[str, Any]],
        responses: Sequence[tuple[dict[str, Any] | str, bool]],
        tools: list[Any] | None = None,
        *,
        where: str | None = None,
    ) -> RowText:
        """Render messages and the assistant turns (or their words) after them.

        Args:
            where: names the row in errors; by default only the source.

        Raises:
            TSpinError: the template refuses the messages, leaves out their tool calls, or does
                not continue its generation prompt.
        """
        where = where or self._source
        turns = [
            {"role": "assistant", "content": turn} if isinstance(turn, str) else turn
            for turn, _ in responses
        ]
        calls = any(message.get("tool_calls") for message in [*messages, *turns])
        if calls and "tool_calls" not in self._template:
            raise BadRow(
                f"{where}: its messages have tool calls, which the chat template leaves out; drop "
                "the row, or give a template that has them with `chat_template`",
                "tool calls that the template leaves out",
            )
        prompt = self._render(messages, tools, where, add_generation_prompt=True)
        continuations = [self._continued(prompt, messages, turn, tools, where) for turn in turns]
        words = {"role": "assistant", "content": turns[0]["content"]}
        plain = turns[0] == words or (
            words["content"] is not None
            and self._continued(prompt, messages, words, tools, where) == continuations[0]
        )
        annotated = words["content"] if plain else continuations[0]
        ended = [ended for _, ended in responses]
        return RowText(prompt, messages, annotated, list(zip(continuations, ended, strict=True)))

    def _continued(
        self,
        prompt: str,
        messages: list[dict[str, Any]],
        turn: dict[str, Any],
        tools: list[Any] | None,
        where: str,
    ) -> str:
        if turn == ENDED_AT_ONCE:
            return ""
        whole = self._render([*messages, turn], tools, where, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise BadRow(
                f"{where}: the chat template renders the generation prompt as "
                f"{prompt[-60:]!r}, but does not begin the assistant's turn so; T-SPIN needs the "
                "same prompt in training and generation. Give a template in which both agree "
                "with `chat_template: jinja` and `chat_template_jinja`",
                "a prompt that the template changes once it is answered",
            )
        return whole[len(prompt) :].removesuffix(self._suffix)

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        where: str,
        *,
        add_generation_prompt: bool,
    ) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
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

    def _end_of_turn(self, eot_tokens: Sequence[str] | None) -> tuple[str, list[int]]:
        """Find the text that the template puts after an assistant's words, and its token ids up to
        the end-of-turn token (the end-of-text token if the template has none)."""
        conversation = [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": PROBE},
        ]
        whole = self._render(conversation, None, self._source, add_generation_prompt=False)
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
    """Find the begin-of-text token, if the tokenizer puts one before a text."""
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
