"""Conversations under templates that do unusual things, one at a time."""

import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data import CHATML
from transformers import PreTrainedTokenizerFast

from axolotl_tspin.errors import BadRow
from axolotl_tspin.strategies.chat_encoding import ChatEncoder
from axolotl_tspin.strategies.left_out import left_out

USER = [{"role": "user", "content": "What is 2 + 3?"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
ANSWER = {"role": "assistant", "content": "It is 5."}
THOUGHTFUL = {"role": "assistant", "content": "It is 5.", "reasoning_content": "2 and 3 are 5."}

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
WITH_CALLS = (
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments }}</call>"
    "{% endfor %}"
)
TWO_ENDS = (
    HEAD
    + "{{ m.content }}{% if m.tool_calls %}"
    + WITH_CALLS
    + "<|call|>{% elif loop.last and m.role == 'assistant' %}"
    "<|return|>{% else %}<|im_end|>{% endif %}" + TAIL
)
"""As gpt-oss: a last turn ends otherwise than an earlier one, and a tool call otherwise again."""

R1 = HEAD + "{{ m.content.split('</think>')[-1] }}<|im_end|>\n" + TAIL
"""As DeepSeek R1's: thoughts are dropped from every turn."""

PAST_THOUGHTS = (
    HEAD + "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}"
    "{% endif %}<|im_end|>\n" + TAIL
)
"""As Qwen 3's: thoughts are dropped from past turns."""

NONE_FOR_CALLS = (
    HEAD + "{% if m.content is none %}" + WITH_CALLS + "{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n" + TAIL
)
"""As DeepSeek V3's: tool calls are shown only where the content is null."""

TEXT_ARGUMENTS = (
    HEAD + "{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments + '</call>' }}{% endfor %}"
    "<|im_end|>\n" + TAIL
)
"""As DeepSeek V3's: arguments must be JSON text."""

SYSTEM_LAST = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and system %}[{{ system }}] {% endif %}{{ m.content }}<|im_end|>\n{% endif %}"
    + TAIL
)
"""A template that puts the system message into the last turn, whoever has it."""


@pytest.fixture(scope="module")
def special(tokenizer) -> PreTrainedTokenizerFast:
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<|call|>", "<|return|>"]})
    return own


def encoded(encoder, prompt, response, ended=True, tools=None):
    (triplet,) = encoder.triplets([encoder.text(prompt, [(response, ended)], tools)])
    return triplet


def trained(encoder, tokenizer, prompt, response, ended=True, tools=None) -> str:
    return tokenizer.decode(encoded(encoder, prompt, response, ended, tools).annotated)


def test_a_turn_ends_with_its_own_end_and_nothing_behind_it(special):
    encoder = ChatEncoder(special, TWO_ENDS)
    assert trained(encoder, special, USER, ANSWER) == "It is 5.<|return|>"
    assert trained(encoder, special, USER, CALLS) == "<call>add {'x': 2}</call><|call|>"
    assert trained(encoder, special, USER, ANSWER, ended=False) == "It is 5."
    stops = special.convert_ids_to_tokens(encoder.stop_ids)
    assert stops == ["<|return|>", "<|call|>", "<|im_end|>"]


@pytest.mark.parametrize(
    "own", ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|><|im_end|>", "<|call|>"]
)
def test_words_that_end_in_an_end_are_not_given_a_second_one(special, own):
    encoder = ChatEncoder(special, CHATML, eot_tokens=["<|im_end|>", "<|call|>"])
    assert trained(encoder, special, USER, "It is 5." + own) == "It is 5.<|im_end|>"
    assert trained(encoder, special, USER, own) == "<|im_end|>"


def test_a_models_own_ends_stop_sampling(special):
    call = special.convert_tokens_to_ids("<|call|>")
    assert call in ChatEncoder(special, CHATML, model_ends=[call]).stop_ids
    assert call not in ChatEncoder(special, CHATML).stop_ids


def test_calls_are_given_in_the_form_in_which_the_template_shows_them(special):
    for template, text in (
        (NONE_FOR_CALLS, "<call>add {'x': 2}</call><|im_end|>"),
        (TEXT_ARGUMENTS, '<call>add {"x": 2}</call><|im_end|>'),
    ):
        encoder = ChatEncoder(special, template)
        assert trained(encoder, special, USER, CALLS) == text
        prompt = encoder.text([*USER, CALLS, *USER], [(ANSWER, True)]).prompt
        assert text in prompt and "None" not in prompt


def test_words_beside_tool_calls_that_the_template_leaves_out_are_refused(special):
    encoder = ChatEncoder(special, NONE_FOR_CALLS)
    both = {**CALLS, "content": "Let me add."}
    with pytest.raises(BadRow, match="leaves out the response's tool calls") as error:
        encoder.text(USER, [(both, True)])
    assert error.value.kind == "tool calls of the response that the template leaves out"
    row = encoder.text([*USER, both, *USER], [(ANSWER, True)])
    assert row.left_out == ("tool calls of assistant turns",)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "<think>2 and 3 are 5.</think>It is 5."},
        {"role": "assistant", "content": "2 and 3 are 5.</think>It is 5."},
        THOUGHTFUL,
        {"role": "assistant", "content": "It is 5.", "thinking": "2 and 3 are 5."},
    ],
)
def test_a_response_whose_reasoning_the_template_leaves_out_is_refused(special, turn):
    encoder = ChatEncoder(special, R1, source="my data")
    with pytest.raises(BadRow, match=r"my data: .*response's reasoning.*`template_thinking_key`"):
        encoder.text(USER, [(turn, True)])
    assert encoder.text([*USER, turn, *USER], [(ANSWER, True)]).left_out == (
        "reasoning of assistant turns",
    )
    assert encoder.text(USER, [(ANSWER, True)]).left_out == ()


def test_reasoning_that_is_kept_in_the_last_turn_is_trained(special):
    encoder = ChatEncoder(special, PAST_THOUGHTS)
    words = "<think>2 and 3 are 5.</think>It is 5."
    assert trained(encoder, special, USER, words) == words + "<|im_end|>"
    past = [*USER, {"role": "assistant", "content": words}, *USER]
    assert encoder.text(past, [(words, True)]).left_out == ("reasoning of assistant turns",)


def test_a_key_for_reasoning_of_ones_own_is_known(special):
    turn = {"role": "assistant", "content": "It is 5.", "chain": "2 and 3 are 5."}
    with pytest.raises(BadRow, match="reasoning"):
        ChatEncoder(special, CHATML, reasoning_key="chain").text(USER, [(turn, True)])
    shown = CHATML.replace("{{ message['content'] }}", "{{ message.chain }}{{ message.content }}")
    encoder = ChatEncoder(special, shown, reasoning_key="chain")
    assert trained(encoder, special, USER, turn) == "2 and 3 are 5.It is 5.<|im_end|>"


def test_turns_and_tools_that_a_template_leaves_out_are_named(special):
    template = CHATML.replace(
        "<|im_start|>{{", "{% if message.role in ('tool', 'system') %}{% else %}<|im_start|>{{"
    ).replace("<|im_end|>\n{% endfor", "<|im_end|>\n{% endif %}{% endfor")
    messages = [{"role": "system", "content": "Be brief."}, *USER, ANSWER]
    messages += [{"role": "tool", "content": "five"}, *USER]
    encoder = ChatEncoder(special, template)
    assert encoder.text(messages, [(ANSWER, True)], TOOLS).left_out == (
        "words of system turns",
        "words of tool turns",
        "tools",
    )
    assert ChatEncoder(special, CHATML).text(messages, [(ANSWER, True)]).left_out == ()


def test_words_that_a_template_changes_are_not_left_out(special):
    spelled = CHATML.replace("message['content']", "message['content'].replace('5', 'five')")
    encoder = ChatEncoder(special, spelled)
    row = encoder.text([*USER, ANSWER, *USER], [(ANSWER, True)])
    assert row.left_out == () and row.responses[0].text == "It is five.<|im_end|>"


def test_a_piece_that_another_one_repeats_is_found():
    """The words "5" are in the reasoning as well, which does not mean that they are kept."""
    message = {"role": "assistant", "content": "5", "reasoning_content": "2 and 3 are 5"}
    for key, lost in (("reasoning_content", "words"), ("content", "reasoning")):
        assert left_out([message], lambda turns, key=key: turns[0][key]) == [(0, lost)]
    assert left_out([message], lambda turns: str(turns)) == []


@given(
    st.lists(st.sampled_from(["<think>", "</think>", " ", "\n", "a", "think", "5"]), max_size=8)
    .map("".join)
    .map(lambda words: {"role": "assistant", "content": words, "reasoning_content": " a "})
)
def test_all_is_found_where_all_is_rendered_and_nothing_where_nothing_is(message):
    assert (
        left_out([message], lambda turns: turns[0]["content"] + turns[0]["reasoning_content"]) == []
    )
    # A rendering that is always empty is one that failed or changed nothing.
    lost = left_out([message], lambda turns: "")
    texts = [t for t in re.split("</?think>", message["content"]) if t.strip()]
    assert len(lost) == len(texts) + 1 and (0, "reasoning") in lost


@pytest.mark.parametrize("begun", [False, True])
def test_a_response_that_was_cut_within_its_thought_gets_no_other_thought(special, begun):
    thought = "<think>\n{{ m.reasoning_content }}</think>\n"
    template = HEAD + "{% if m.role == 'assistant' and '</think>' not in m.content %}" + thought
    template += "{% endif %}{{ m.content }}<|im_end|>\n" + TAIL
    if begun:
        template = template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    encoder = ChatEncoder(special, template)
    cut = trained(encoder, special, USER, "<think>\nTwo and", ended=False)
    assert cut == ("Two and" if begun else "<think>\nTwo and")
    assert trained(encoder, special, USER, "It is 5.").endswith("</think>\nIt is 5.<|im_end|>")


def test_a_moved_system_message_is_named_and_its_place_shown(special):
    system = {"role": "system", "content": "Be brief."}
    encoder = ChatEncoder(special, SYSTEM_LAST, source="my data")
    with pytest.raises(BadRow, match=r"moves the system message.*`drop_system_message") as error:
        encoder.text([system, *USER], [(ANSWER, True)])
    assert "[Be brief.] What" in str(error.value) and "user\\nWhat is 2" in str(error.value)
    assert encoder.text(USER, [(ANSWER, True)]).prompt


def test_a_rendering_only_to_compare_refuses_nothing(special):
    """The template wants tools' names in a certain form, which the probe's do not have."""
    template = (
        HEAD + "{% for c in m.tool_calls or [] %}{% if c.function.name != 'add' %}"
        "{{ raise_exception('unknown tool') }}{% endif %}[{{ c.function.arguments.x }}]{% endfor %}"
        "{{ m.content }}<|im_end|>\n" + TAIL
    )
    encoder = ChatEncoder(special, template)
    assert trained(encoder, special, USER, CALLS) == "[2]<|im_end|>"


def test_a_response_that_ended_at_once_is_its_end(special):
    encoder = ChatEncoder(special, CHATML)
    assert trained(encoder, special, USER, "") == "<|im_end|>"


def test_words_for_people_are_decoded_from_what_is_trained(special):
    encoder = ChatEncoder(special, CHATML)
    row = encoded(encoder, USER, ANSWER)
    assert encoder.words(row.annotated) == "It is 5."
    assert encoder.words(row.annotated[:2]) == special.decode(row.annotated[:2])
    assert encoder.words([]) == ""


def test_a_template_that_always_begins_the_next_turn_does_not_end_with_that(special):
    always = CHATML.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "")
    special = copy.deepcopy(special)
    special.eos_token = "<|endoftext|>"
    encoder = ChatEncoder(special, always)
    assert trained(encoder, special, USER, ANSWER).endswith("It is 5.<|im_end|>")
    assert special.convert_tokens_to_ids("<|im_start|>") not in encoder.stop_ids


def test_an_added_token_that_is_not_special_ends_a_turn(tokenizer):
    """As Axolotl's `tokens:` adds them."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["[end]"])
    own.eos_token = "<|endoftext|>"
    encoder = ChatEncoder(own, CHATML.replace("<|im_end|>", "[end]").replace("<|im_start|>", "# "))
    assert trained(encoder, own, USER, ANSWER) == "It is 5.[end]"
    assert trained(encoder, own, USER, "It is 5.[end]") == "It is 5.[end]"


def test_calls_end_where_no_tool_turn_may_follow_and_their_own_tokens_close_them(special):
    template = HEAD.replace(
        "{% for m in messages %}",
        "{% for m in messages %}"
        "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}",
    )
    template += "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}<|call|>"
    template += "{% endfor %}<|im_end|>\n" + TAIL
    encoder = ChatEncoder(special, template)
    two = {**CALLS, "tool_calls": [CALL, CALL]}
    assert trained(encoder, special, USER, two) == "add<|call|>add<|call|><|im_end|>"
    assert special.convert_tokens_to_ids("<|call|>") not in encoder.stop_ids


def test_a_second_closing_tag_does_not_hide_lost_words(special):
    words = "<think>\na\n</think>\n\nb b</think>\n\nc"
    with pytest.raises(BadRow, match="reasoning"):
        ChatEncoder(special, R1.replace("[-1]", "[0] ~ m.content.split('</think>')[-1]")).text(
            USER, [(words, True)]
        )


def test_the_white_space_behind_a_turn_may_differ(special):
    template = CHATML.replace("<|im_end|>\n", "<|im_end|>{{ '\n\n' if loop.index > 2 else '\n' }}")
    long = [*USER, ANSWER, *USER]
    assert trained(ChatEncoder(special, template), special, long, ANSWER) == "It is 5.<|im_end|>"


def test_one_thought_under_two_keys_is_kept_where_one_is_rendered(special):
    shown = CHATML.replace(
        "{{ message['content'] }}", "{{ message.thinking }}{{ message.content }}"
    )
    turn = {**THOUGHTFUL, "thinking": THOUGHTFUL["reasoning_content"]}
    assert trained(ChatEncoder(special, shown), special, USER, turn) == (
        "2 and 3 are 5.It is 5.<|im_end|>"
    )


def test_a_template_that_wants_a_system_message_is_taken(special):
    template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    system = {"role": "system", "content": "Be brief."}
    encoder = ChatEncoder(special, template)
    assert trained(encoder, special, [system, *USER], ANSWER) == "It is 5.<|im_end|>"
    with pytest.raises(BadRow, match="cannot render"):
        encoder.text(USER, [(ANSWER, True)])
