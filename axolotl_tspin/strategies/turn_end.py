"""Where a turn ends, and at which tokens sampling stops."""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from transformers import GenerationConfig, PreTrainedTokenizerBase

from axolotl_tspin.errors import TSpinError


class TurnEnd(NamedTuple):
    """The end of an assistant's turn.

    Attributes:
        text: what the template renders behind the words, up to the turn's last token; "" if it
            renders no end.
        tail: what it renders behind that, which is not a part of the turn.
        ids: the tokens that end the turn.
    """

    text: str
    tail: str
    ids: list[int]


def find_turn_end(
    last: str,
    followed: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eot_tokens: Sequence[str] = (),
    model_ends: Collection[int] = (),
    openings: Collection[int] = (),
    any_added: bool = True,
) -> TurnEnd:
    """Find the end of a turn from two renderings of it.

    What both have in common, up to its last end token, ends the turn. Where they have no end token
    in common, the first one of the last turn does. A token that the model names as an end goes
    before others. Where the last turn has none, it ends with what follows it if the model names
    that as an end, else with the end-of-text token.

    Args:
        last: the text behind the words where the turn is the last one.
        followed: the text behind the words where another turn follows; "" if that is not known.
        eot_tokens: Axolotl's `eot_tokens`; without any, every special token may be the end.
        any_added: where there is no special token, every added one may be the end.
        model_ends: the end tokens of the model's generation configuration.
        openings: tokens that begin a turn, and end none unless the model says so.

    Raises:
        TSpinError: `eot_tokens` names text that is not one token, or there is no end-of-text token.
    """
    ids, next_ids = _plain_ids(tokenizer, last), _plain_ids(tokenizer, followed)
    common = common_length(ids, next_ids)
    named = {*model_ends, tokenizer.eos_token_id}
    candidates = (
        [{token_id(tokenizer, token) for token in eot_tokens}]
        if eot_tokens
        else [
            (special_ids(tokenizer) - {*openings}) | named,
            {*tokenizer.added_tokens_decoder} - {*openings} if any_added else set(),
        ]
    )
    ends = next((ends for ends in candidates if not ends.isdisjoint(ids)), set())
    own = [i for i, token in enumerate(ids) if token in ends]
    if own:
        shared = [i for i in own if i < common]
        known = [i for i in shared or own if ids[i] in named] or shared or own
        position = known[-1] if shared else known[0]
        text = _text_up_to(tokenizer, last, ids, position)
        return TurnEnd(text, last.removeprefix(text), ids[: position + 1])
    following = [token for token in next_ids if token in special_ids(tokenizer)][:1]
    if following and following[0] in model_ends and not eot_tokens:
        return TurnEnd("", last, following)
    return TurnEnd("", last, [end_of_text(tokenizer, eot_tokens)])


def find_stops(
    tokenizer: PreTrainedTokenizerBase,
    ends: Iterable[TurnEnd],
    eot_tokens: Sequence[str],
    model_ends: Iterable[int],
) -> tuple[int, ...]:
    """List the tokens at which sampling stops, the end of a plain turn first."""
    stops = [end.ids[-1] for end in ends]
    stops += [token_id(tokenizer, token) for token in eot_tokens]
    stops += model_ends
    if tokenizer.eos_token_id is not None:
        stops.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(stops))


@lru_cache
def model_end_ids(base_model: str, revision: str | None) -> tuple[int, ...]:
    """Read the end tokens in a model's `generation_config.json`; none if it has no such file."""
    try:
        eos = GenerationConfig.from_pretrained(base_model, revision=revision or "main").eos_token_id
    except (OSError, ValueError):
        return ()
    return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)


def without_own_end(words: str, ends: Collection[str]) -> str:
    """Take end tokens, and the white space behind them, from the end of words, which get theirs
    from the template."""
    while end := next((end for end in ends if words.rstrip().endswith(end)), None):
        words = words.rstrip().removesuffix(end)
    return words


def end_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """The texts of those tokens that were added to the vocabulary, and so never a part of words."""
    added = {*special_ids(tokenizer), *tokenizer.added_tokens_decoder}
    return [token_text(tokenizer, i) for i in dict.fromkeys(ids) if i in added]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Find the id of one of `eot_tokens`."""
    known = tokenizer.convert_tokens_to_ids(token)
    if isinstance(known, int) and known != tokenizer.unk_token_id:
        return known
    ids = _plain_ids(tokenizer, token)
    if len(ids) != 1 or ids == [tokenizer.unk_token_id]:
        raise TSpinError(
            f"`eot_tokens`: {token!r} is not one token of this tokenizer ({ids}); add it with "
            "`tokens:` or name another"
        )
    return ids[0]


def end_of_text(tokenizer: PreTrainedTokenizerBase, eot_tokens: Sequence[str]) -> int:
    """Find the token that ends a response to which nothing else puts an end."""
    if eot_tokens:
        return token_id(tokenizer, eot_tokens[0])
    if tokenizer.eos_token_id is None:
        raise TSpinError(
            "the tokenizer has no end-of-text token to end a response with; name one in the YAML: "
            "special_tokens: {eos_token: <a token of the vocabulary>}"
        )
    return tokenizer.eos_token_id


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Count the items with which two sequences both begin."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    added = tokenizer.added_tokens_decoder.get(token)
    return added.content if added else str(tokenizer.decode([token]))


def _text_up_to(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int], position: int
) -> str:
    """The part of a text up to the end of the token at a position."""
    end = token_text(tokenizer, ids[position])
    parts = text.split(end)
    return end.join([*parts[: list(ids[: position + 1]).count(ids[position])], ""])


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
