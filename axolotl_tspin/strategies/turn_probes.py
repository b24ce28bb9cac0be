"""The ends of a template's turns, found by rendering turns that nobody wrote."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies.chat_rendering import CALLS_FORMS, ChatRenderer
from axolotl_tspin.strategies.left_out import PROBE
from axolotl_tspin.strategies.turn_end import (
    TurnEnd,
    find_turn_end,
    special_ids,
    token_text,
)

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Hello."}
ANSWER = {"role": "assistant", "content": PROBE}
CALLED = PROBE.replace(" ", "_")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": CALLED,
            "description": "Find a number.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
# Mistral's templates want ids of nine letters.
CALL = {"id": "call00001", "type": "function", "function": {"name": CALLED, "arguments": {"a": 1}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": CALLED, "tool_call_id": "call00001", "content": "1"}


def find_ends(
    chat: ChatRenderer,
    tokenizer: PreTrainedTokenizerBase,
    eot_tokens: Sequence[str],
    model_ends: Collection[int],
) -> tuple[TurnEnd, TurnEnd | None]:
    """Find the ends of a plain turn and of one with tool calls; None if the template has no tool
    calls. Sets the form in which `chat` gives calls to the template.

    Raises:
        TSpinError: the template renders no plain turn, or ends are not found (`find_turn_end`).
    """
    question = _question(chat)
    find = partial(
        find_turn_end,
        tokenizer=tokenizer,
        eot_tokens=eot_tokens,
        model_ends=model_ends,
        openings=_openings(chat, tokenizer, question),
    )
    last = chat.render([*question, ANSWER], None)
    followed = chat.rendered_or_nothing([*question, ANSWER, QUESTION], None)
    plain = find(*_behind(last, followed, PROBE))
    return plain, _end_of_calls(chat, tokenizer, question, find)


def _question(chat: ChatRenderer) -> list[dict[str, Any]]:
    """A question to which the template renders an answer; some want a system message first."""
    for question in ([QUESTION], [SYSTEM, QUESTION]):
        if PROBE in chat.rendered_or_nothing([*question, ANSWER], None):
            return question
    chat.render([QUESTION, ANSWER], None)  # its own error, if it has one
    raise TSpinError(
        f"{chat.source}: the chat template leaves out or changes an assistant's words; give "
        "another one with `chat_template: jinja` and `chat_template_jinja`"
    )


def _openings(
    chat: ChatRenderer, tokenizer: PreTrainedTokenizerBase, question: list[dict[str, Any]]
) -> set[int]:
    """The special tokens that begin an assistant's turn. Some templates always put them behind a
    conversation, where they are the beginning of the next turn and not the end of one."""
    bare = chat.rendered_or_nothing(question, None)
    prompt = chat.rendered_or_nothing(question, None, add_generation_prompt=True)
    special = special_ids(tokenizer)

    def specials(text: str) -> list[int]:
        return [i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i in special]

    if prompt != bare and prompt.startswith(bare):
        return set(specials(prompt[len(bare) :]))
    # The first token behind the question ends its own turn.
    return set(specials(prompt.rpartition(QUESTION["content"])[2])[1:])


def _end_of_calls(
    chat: ChatRenderer,
    tokenizer: PreTrainedTokenizerBase,
    question: list[dict[str, Any]],
    find: partial[TurnEnd],
) -> TurnEnd | None:
    unanswered = chat.rendered_or_nothing(question, TOOLS)
    for chat.calls_form in CALLS_FORMS:
        last = chat.rendered_or_nothing([*question, CALLS], TOOLS)
        shown = last.count(CALLED) > unanswered.count(CALLED)
        if shown and last.count("None") <= unanswered.count("None"):
            break
    else:
        chat.calls_form = CALLS_FORMS[0]
        return None
    followed = next(
        filter(
            None,
            (
                chat.rendered_or_nothing([*question, CALLS, message], TOOLS)
                for message in (RESULT, QUESTION)
            ),
        ),
        "",
    )
    # Added tokens that are not special close calls (`</tool_call>`), not turns.
    end = find(*_behind(last, followed, CALLED), any_added=False)
    if not end.text:
        return TurnEnd("", "", end.ids)
    # The text before the last token holds the probe's arguments.
    return TurnEnd(token_text(tokenizer, end.ids[-1]), end.tail, end.ids[-1:])


def _behind(last: str, followed: str, probe: str) -> tuple[str, str]:
    """The texts behind the last turn's probe, where it is the last and where another follows."""
    times = last.count(probe)
    return last.rpartition(probe)[2], "".join(followed.split(probe, times)[times:])
