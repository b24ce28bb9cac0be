"""Prompts and responses as token ids: one rule for training and for generation.

A prompt is rendered with the template's generation prompt and tokenised alone, exactly as an
engine gets it. A response is what the template renders of the whole conversation behind that, up
to the token with which the model ends a turn, as the tokenizer tokenises it there.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from axolotl_tspin.errors import BadRow
from axolotl_tspin.strategies.continuation import ResponseTokenizer
from axolotl_tspin.strategies.turn_end import (
    TurnEnd,
    end_of_text,
    end_texts,
    find_stops,
    without_own_end,
)


class Continuation(NamedTuple):
    """A response as text behind its prompt, with the end of its turn as far as that is text.

    Attributes:
        end: tokens that end the response if its text does not; empty if it was cut.
    """

    text: str
    end: Sequence[int]


class RowText(NamedTuple):
    """A row as text.

    Attributes:
        prompt: the rendered prompt, which the policy continues.
        messages: the prompt as the data set had it; None for plain text.
        responses: the responses, the annotated one first.
        left_out: what the template leaves out of the prompt, each in a few words.
    """

    prompt: str
    messages: list[dict[str, Any]] | None
    responses: list[Continuation]
    left_out: tuple[str, ...] = ()


class Triplet(NamedTuple):
    """One row, encoded. The generation step has no synthetic and proto-synthetic responses yet.

    Attributes:
        prompt_text: the prompt, for people who read the run directory.
        messages: the prompt as the data set had it; None for plain text.
        stop_ids: the tokens at which sampling stops, the end of a plain turn first.
        reference_logps: the three responses' log-probabilities under the frozen policy, for methods
            with a reference.
        left_out: see `RowText`.
    """

    prompt_text: str
    messages: list[dict[str, Any]] | None
    prompt: list[int]
    stop_ids: Sequence[int]
    annotated: list[int]
    synthetic: list[int] | None = None
    proto_synthetic: list[int] | None = None
    reference_logps: list[float] | None = None
    left_out: tuple[str, ...] = ()


class Encoder:
    """Tokenises rows of text, many at once; its subclasses turn rows into text.

    Attributes:
        stop_ids: the tokens at which sampling stops, the end of a plain turn first.
    """

    stop_ids: tuple[int, ...]

    def __init__(self, tokenizer: PreTrainedTokenizerBase, beginning: list[int]) -> None:
        self._tokenizer = tokenizer
        self._beginning = beginning
        self._continuation = ResponseTokenizer(tokenizer)
        self._ends: list[str] = []
        self._stops: list[str] = []

    def triplets(self, rows: Sequence[RowText]) -> list[Triplet]:
        """Encode rows as token ids, each prompt tokenised once."""
        if not rows:
            return []
        prompts = self._tokenizer([row.prompt for row in rows], add_special_tokens=False)
        pairs = list(zip(rows, prompts["input_ids"], strict=True))
        continuations = iter(
            self._continuation.batch(
                [row.prompt for row in rows for _ in row.responses],
                [ids for row, ids in pairs for _ in row.responses],
                [response.text for row in rows for response in row.responses],
            )
        )
        triplets = []
        for row, ids in pairs:
            annotated, *generated = (
                self._ended(next(continuations), response.end) for response in row.responses
            )
            synthetic, proto_synthetic = generated or (None, None)
            triplets.append(
                Triplet(
                    row.prompt,
                    row.messages,
                    [*self._beginning, *ids],
                    self.stop_ids,
                    annotated,
                    synthetic,
                    proto_synthetic,
                    left_out=row.left_out,
                )
            )
        return triplets

    def words(self, response: Sequence[int]) -> str:
        """Decode a response as people read it: without the token that ends it, and as sampled
        responses are decoded."""
        ids = list(response[:-1] if self._is_ended(response) else response)
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _ended(self, ids: list[int], end: Sequence[int]) -> list[int]:
        """Put the end behind a response that is to end and does not."""
        return [*ids, *end] if end and not self._is_ended(ids) else ids

    def _is_ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] in self.stop_ids

    def _check_no_end_within(self, text: str, where: str) -> None:
        """Refuse a response that goes on after a token at which sampling stops."""
        within = next((end for end in self._stops if end in text), None)
        if within:
            raise BadRow(
                f"{where}: a response has {within} within it, with which the model ends a turn: no "
                "sampled response goes on after that. Drop the row, or mend it",
                "a response that goes on after its end",
            )

    def _set_ends(
        self, ends: Sequence[TurnEnd], eot_tokens: Sequence[str], model_ends: Collection[int]
    ) -> None:
        self.stop_ids = find_stops(self._tokenizer, ends, eot_tokens, model_ends)
        own = [i for end in ends for i in end.ids]
        self._ends = end_texts(self._tokenizer, [*self.stop_ids, *own])
        self._stops = end_texts(self._tokenizer, self.stop_ids)


class TextEncoder(Encoder):
    """Encodes finished prompts and responses' words.

    Args:
        eot_tokens: Axolotl's `eot_tokens`; the first ends a response. Without any, the end-of-text
            token does.
        model_ends: the end tokens of the model's generation configuration.

    Raises:
        TSpinError: the tokenizer has no end-of-text token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eot_tokens: Sequence[str] | None = None,
        model_ends: Collection[int] = (),
    ) -> None:
        super().__init__(tokenizer, _beginning(tokenizer))
        self._end = [end_of_text(tokenizer, eot_tokens or ())]
        self._set_ends([TurnEnd("", "", self._end)], eot_tokens or (), model_ends)

    def text(
        self, prompt: str, responses: Sequence[tuple[str, bool]], *, where: str = "the data set"
    ) -> RowText:
        """Make a row from a prompt, and each response's words and whether it ended by itself.

        Args:
            where: names the row in errors.

        Raises:
            BadRow: a response goes on after its end.
        """
        continuations = []
        for words, ended in responses:
            text = without_own_end(words, self._ends) if ended else words
            self._check_no_end_within(text, where)
            continuations.append(Continuation(text, self._end if ended else ()))
        return RowText(prompt, None, continuations)


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Find the begin-of-text token, if the tokenizer puts one before a text."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []
