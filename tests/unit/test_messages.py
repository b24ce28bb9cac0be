"""Messages are read as Axolotl's chat strategy reads them: what both render is the same text."""

import copy
import json

import pytest
from axolotl.prompt_strategies.chat_template import load as axolotls_strategy
from axolotl.utils.dict import DictDefault, remove_none_values
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.errors import BadRow, UntrainedRow
from axolotl_tspin.strategies.chat_template import chat_reader
from axolotl_tspin.strategies.content import split_thought
from axolotl_tspin.strategies.rows import RowReader

EVERY_KEY = (
    "{% for message in messages %}[{{ message.role }}|{{ message.content }}|{{ message.name }}|"
    "{{ message.thinking }}|{{ message.reasoning_content }}|{{ message.tool_call_id }}|"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}]{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
)
TEMPLATES = {
    "qwen_25": {"chat_template": "qwen_25"},
    "qwen3": {"chat_template": "qwen3"},
    "every key": {"chat_template": "jinja", "chat_template_jinja": EVERY_KEY},
}

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "1 + 1?"}
ANSWER = {"role": "assistant", "content": "It is 2."}
PLAIN = [SYSTEM, ASK, ANSWER, {"role": "user", "content": "Sure?"}, ANSWER]
RESULT = {"role": "tool", "content": "2", "tool_call_id": "c1"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TOOL_AS_TEXT = {"function": {"name": "add", "parameters": '{"type": "object", "x": null}'}}


def calling(arguments, **keys):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    called = {"role": "assistant", "tool_calls": [call]} | keys
    return [ASK, called, RESULT, ANSWER]


def answered(content, **keys):
    """A conversation; content parts go through Arrow only where all messages have them."""
    ask = ASK | {"content": [{"text": ASK["content"]}]} if isinstance(content, list) else ASK
    return {"messages": [ask, {"role": "assistant", "content": content} | keys]}


def renamed(messages, **names):
    return [{names.get(key, key): value for key, value in m.items()} for m in messages]


THOUGHT = "<think>\nOne and one.\n</think>\n\nIt is 2."
SOLVED = (
    "<|begin_of_thought|> Hm. <|end_of_thought|>\n<|begin_of_solution|> It is 2. "
    "<|end_of_solution|> x"
)
SPLIT = {"split_thinking": True}
CALLS = {"name": "f", "arguments": {}}
ROLES = {"user": ["kid"], "assistant": ["tutor"]}
KID = [ASK | {"role": "kid"}, ANSWER | {"role": "tutor"}]
WHO = {"role": "who", "content": "says"}
THINKS = [ASK, ANSWER | {"thought": "One and one."}]

CASES = {
    "plain": ({}, {"messages": PLAIN}),
    "another column": ({"field_messages": "chat"}, {"chat": PLAIN}),
    "mapped": (
        {"message_property_mappings": WHO},
        {"messages": renamed(PLAIN, role="who", content="says")},
    ),
    "a mapped name": (
        {"message_property_mappings": WHO | {"name": "nick"}},
        {
            "messages": renamed(
                [ASK, ANSWER | {"name": "T"}], role="who", content="says", name="nick"
            )
        },
    ),
    "roles": ({"roles": ROLES}, {"messages": KID}),
    "ShareGPT": (
        {"message_property_mappings": {"role": "from", "content": "value"}},
        {
            "messages": renamed(
                [ASK | {"role": "human"}, ANSWER | {"role": "gpt"}], role="from", content="value"
            )
        },
    ),
    "without system": ({"drop_system_message": True}, {"messages": PLAIN}),
    "a second system": ({"drop_system_message": True}, {"messages": [SYSTEM, ASK, SYSTEM, ANSWER]}),
    "a later system": ({"drop_system_message": True}, {"messages": [ASK, ANSWER, SYSTEM, ANSWER]}),
    "no system column": ({"drop_system_message": True}, {"messages": PLAIN[1:], "system": "Be."}),
    "system column": ({}, {"messages": PLAIN[1:], "system": "Be."}),
    "empty system column": ({}, {"messages": PLAIN[1:], "system": ""}),
    "system column of blanks": ({}, {"messages": PLAIN[1:], "system": " "}),
    "null system column": ({}, {"messages": PLAIN[1:], "system": None}),
    "both systems": ({}, {"messages": PLAIN, "system": "Be."}),
    "null system message": ({}, {"messages": [SYSTEM | {"content": ""}, ASK, ANSWER]}),
    "text": ({}, {"messages": json.dumps(PLAIN)}),
    "text with nulls": (
        {},
        {"messages": json.dumps(calling({"x": None}, content=None, name=None))},
    ),
    "reasoning": ({}, answered("It is 2.", reasoning_content="One and one.")),
    "null reasoning": ({}, answered("It is 2.", reasoning_content=None)),
    "reasoning parts": ({}, answered("2", reasoning_content=[{"text": "One"}, {"value": " and"}])),
    "field_thinking": ({"field_thinking": "thought"}, {"messages": THINKS}),
    "both thinking keys": (
        {"field_thinking": "thought", "template_thinking_key": "thinking"},
        {"messages": THINKS},
    ),
    "tags unsplit": ({}, answered(THOUGHT)),
    "split": (SPLIT, answered(THOUGHT)),
    "split to another key": (SPLIT | {"template_thinking_key": "thinking"}, answered(THOUGHT)),
    "split solution": (SPLIT, answered(SOLVED)),
    "split reasoning tags": (SPLIT, answered("a <reasoning>b</reasoning> c")),
    "split twice": (SPLIT, answered("<think>a</think>b <think>c</think>d")),
    "split nothing": (SPLIT, answered("a <think> b")),
    "split an empty thought": (SPLIT, answered("<think>\n\n</think>\n\n2")),
    "split backwards": (SPLIT, answered("a</think> b <think> c")),
    "split parts": (SPLIT, answered([{"type": "text", "text": THOUGHT}])),
    "split a user": (SPLIT, {"messages": [ASK | {"content": THOUGHT}, ANSWER]}),
    "split an earlier turn": (SPLIT, {"messages": [*answered(THOUGHT)["messages"], ASK, ANSWER]}),
    "parts": ({}, answered([{"type": "text", "text": "It "}, {"content": "is"}, {"value": " 2."}])),
    "parts of two texts": ({}, answered([{"text": "", "content": "It is", "value": "not"}])),
    "flagged parts": (
        {},
        answered([{"text": "It is", "train": True}, {"text": " 2", "weight": 1}]),
    ),
    "tools": ({}, {"messages": PLAIN, "tools": [TOOL]}),
    "tools as text": ({}, {"messages": PLAIN, "tools": json.dumps([TOOL])}),
    "tools as text with nulls": ({}, {"messages": PLAIN, "tools": json.dumps([TOOL_AS_TEXT])}),
    "parameters as text": ({}, {"messages": PLAIN, "tools": [TOOL_AS_TEXT]}),
    "no tools": ({}, {"messages": PLAIN, "tools": []}),
    "calls": ({}, {"messages": calling({"x": 1}, content="I add."), "tools": [TOOL]}),
    "calls with null": ({}, {"messages": calling({"x": 1}, content=None), "tools": [TOOL]}),
    "calls with nothing": ({}, {"messages": calling({"x": 1}, content=""), "tools": [TOOL]}),
    "calls without content": ({}, {"messages": calling({"x": 1})}),
    "arguments as text": ({}, {"messages": calling('{"x": 1, "y": null}', content=None)}),
    "no arguments": ({}, {"messages": calling({"x": None}, content=None)}),
    "a call at the end": ({}, {"messages": calling({"x": 1}, content=None)[:2]}),
    "no calls": ({}, answered("It is 2.", tool_calls=[])),
    "null calls": ({}, answered("It is 2.", tool_calls=None)),
    "an empty result": (
        {},
        {"messages": [*calling({"x": 1})[:2], RESULT | {"content": ""}, ANSWER]},
    ),
}
NO_EFFECT = {
    "a later system": "only a system message that begins a conversation is dropped",
    "split nothing": "one tag",
    "split parts": "Axolotl looks for tags in text alone",
    "split a user": "only an assistant's words are split",
}


def full(value):
    """A value with further keys in every object, of which Arrow makes nulls in other rows."""
    if isinstance(value, list):
        return [full(item) for item in value]
    return (
        {key: full(item) for key, item in value.items()} | {"more": 1}
        if is_object(value)
        else value
    )


def is_object(value):
    return isinstance(value, dict)


def through_arrow(row):
    other = full(row) | {"images": [], "system": "Be."}
    for messages in (other.get("messages"), other.get("chat")):
        for message in messages if isinstance(messages, list) else []:
            message |= {"name": "n", "tool_call_id": "t", "weight": 1} | message
    return Dataset.from_list([row, other])[0]


def axolotls_text(strategy, row):
    row = remove_none_values(copy.deepcopy(row))  # as `tokenize_prompt` does
    return rendered(strategy, strategy.get_conversation_thread(row), strategy._get_tools(row))


def our_text(strategy, row, ds_cfg):
    reader = chat_reader(DictDefault({"path": "d"} | ds_cfg))
    column = ds_cfg.get("field_messages") or "messages"
    prompt, response = reader.conversation(0, column, row[column], row.get("system"))
    assert all(message["content"] is not None for message in [*prompt, response])
    return rendered(strategy, [*prompt, response], reader.tools(0, "tools", row.get("tools")))


def rendered(strategy, messages, tools):
    return strategy.tokenizer.apply_chat_template(
        messages,
        tools=tools or None,
        chat_template=strategy.prompter.chat_template,
        tokenize=False,
    )


def loaded(tokenizer, ds_cfg):
    """Axolotl's strategy. It is given keys as the YAML has them: its validation fills in mappings
    of role and content, after which its prompter no longer looks at `field_thinking`."""
    cfg = DictDefault({"sequence_len": 256})
    return axolotls_strategy(tokenizer, cfg, DictDefault({"type": "chat_template"} | ds_cfg))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("case", CASES)
def test_a_row_is_read_as_axolotl_reads_it(tokenizer, case, template):
    keys, row = CASES[case]
    ds_cfg = TEMPLATES[template] | keys
    strategy = loaded(tokenizer, ds_cfg)
    stored = through_arrow(row)
    before = copy.deepcopy(stored)
    theirs = axolotls_text(strategy, row)
    assert our_text(strategy, row, ds_cfg) == theirs
    assert axolotls_text(strategy, stored) == theirs, "nulls of other rows' keys say nothing"
    assert our_text(strategy, stored, ds_cfg) == theirs
    assert stored == before, "the row itself stays as it is"


def test_the_cases_differ_where_their_settings_do(tokenizer):
    """A case whose keys had no effect would compare nothing."""
    for case, (keys, row) in CASES.items():
        if not keys or case in NO_EFFECT:
            continue
        ds_cfg = TEMPLATES["every key"] | keys
        theirs = axolotls_text(loaded(tokenizer, ds_cfg), row)
        try:
            without = axolotls_text(loaded(tokenizer, TEMPLATES["every key"]), row)
        except (KeyError, ValueError):
            continue
        assert without != theirs, case


@pytest.mark.parametrize(
    ("keys", "row", "ours"),
    [
        ({}, {"messages": [*PLAIN, ASK]}, {"messages": PLAIN}),
        ({}, answered("2", tool_calls=json.dumps([CALLS])), answered("2", tool_calls=[CALLS])),
        (
            {},
            answered("2", tool_calls=[CALLS | {"arguments": '{"x": 1}'}]),
            answered("2", tool_calls=[CALLS | {"arguments": {"x": 1}}]),
        ),
        (
            {"message_property_mappings": WHO},
            {
                "messages": [
                    {"who": "user", "says": "1?", "content": "x"},
                    {"who": "gpt", "says": "2"},
                ]
            },
            {"messages": [{"who": "user", "says": "1?"}, {"who": "gpt", "says": "2"}]},
        ),
        ({}, answered("2", name=[]), answered("2")),
        (
            {},
            {"messages": [ASK | {"role": "developer"}, ASK, ANSWER]},
            {"messages": [ASK | {"role": "system"}, ASK, ANSWER]},
        ),
        (
            {"roles": {"user": ["kid"]}},
            {"messages": [KID[0], ANSWER | {"role": "gpt"}]},
            {"messages": [ASK, ANSWER]},
        ),
    ],
    ids=[
        "turns after the last assistant turn are left out",
        "tool calls may be JSON text",
        "so may arguments of calls without a function around them",
        "a key that is mapped is read in place of one of the template's name",
        "an empty key of a message says nothing",
        "a developer is a system",
        "roles of the YAML join the usual ones",
    ],
)
def test_where_more_is_understood_than_axolotl_does(tokenizer, keys, row, ours):
    ds_cfg = TEMPLATES["every key"] | keys
    strategy = loaded(tokenizer, ds_cfg)
    plainly = axolotls_text(loaded(tokenizer, TEMPLATES["every key"] | without_roles(keys)), ours)
    assert our_text(strategy, row, ds_cfg) == plainly
    assert axolotls_text(strategy, row) != plainly


def without_roles(keys):
    return {key: value for key, value in keys.items() if key != "roles"}


SHAREGPT = renamed(
    [ASK | {"role": "human"}, ANSWER | {"role": "gpt"}], role="from", content="value"
)


def test_sharegpts_keys_need_no_mapping(tokenizer):
    for row in ({"messages": SHAREGPT}, through_arrow({"messages": SHAREGPT})):
        strategy = loaded(tokenizer, TEMPLATES["every key"])
        text = our_text(strategy, row, TEMPLATES["every key"])
        assert text == axolotls_text(strategy, {"messages": [ASK, ANSWER]})


def test_the_thinking_key_is_read_after_axolotls_validation_too(tokenizer):
    entry = SFTDataset(field_thinking="thought", **TEMPLATES["every key"])
    ds_cfg = entry.model_dump(exclude_none=True)
    text = our_text(loaded(tokenizer, ds_cfg), {"messages": THINKS}, ds_cfg)
    assert "|One and one.|" in text


SPAN = {"begin_offset": 0, "end_offset": 7, "train": True}
DETAIL = {"message_field_training_detail": "spans"}
FLAG = {"message_field_training": "learn"}


@pytest.mark.parametrize(
    ("keys", "content", "extra"),
    [
        ({}, "It is 2.", {}),
        ({}, [{"text": "It is"}, {"text": " 2."}], {}),
        ({}, [{"text": "It is", "train": True}, {"text": " 2.", "weight": 1}], {}),
        ({}, [{"text": "It is", "train": False}, {"text": " 2."}], {}),
        ({}, [{"text": "It is", "weight": 0}, {"text": " 2."}], {}),
        ({}, [{"text": "It is"}, {"text": " 2.", "weight": 0.0}], {}),
        ({}, [{"text": "It is", "train": True, "weight": 0}, {"text": " 2."}], {}),
        ({}, [{"text": "It is 2."}, {"text": "", "train": False}], {}),
        (FLAG, "It is 2.", {"learn": True}),
        (FLAG, "It is 2.", {"learn": False}),
        (FLAG | DETAIL, "It is 2.", {"learn": False, "spans": [SPAN]}),
        (FLAG | DETAIL, "It is 2.", {"learn": True, "spans": [SPAN | {"end_offset": 4}]}),
        (DETAIL, "It is 2.", {"spans": None}),
        (DETAIL, "It is 2.", {"spans": []}),
        (DETAIL, "It is 2.", {"spans": [SPAN]}),
        (DETAIL, "It is 2.", {"spans": [SPAN | {"train": False}]}),
        (DETAIL, "It is 2.", {"spans": [SPAN | {"end_offset": 4}]}),
        (DETAIL, "It is 2.", {"spans": [SPAN | {"begin_offset": 3}]}),
        (DETAIL, "It is 2.", {"spans": [SPAN | {"begin_offset": 5}, SPAN | {"end_offset": 4}]}),
        (DETAIL, [{"text": "It is 2.", "train": True}], {"spans": []}),
        (DETAIL, [{"text": "It is 2.", "train": True}], {"spans": [SPAN | {"train": False}]}),
        (DETAIL, [{"text": "It is 2."}], {"spans": [SPAN | {"train": False}]}),
        ({}, "It is 2.", {"spans": []}),
    ],
)
def test_a_turn_is_left_out_where_axolotl_does_not_train_on_all_of_it(
    tokenizer, keys, content, extra
):
    row = answered(content, **extra)
    keys = {"chat_template": "chatml"} | keys
    strategy = loaded(tokenizer, keys)
    tokens = strategy.tokenize_prompt(row)
    trained = "".join(tokenizer.decode([label]) for label in tokens["labels"] if label != -100)
    words = strategy.get_conversation_thread(row)[-1]["content"]
    reader = chat_reader(DictDefault({"path": "d"} | keys))
    (found,) = reader.conversations(0, "messages", row["messages"])
    assert isinstance(found, UntrainedRow) != (words in trained)
    assert isinstance(found, UntrainedRow) or found.response["content"] == words


def test_thoughts_in_parts_may_be_excluded_as_well():
    parts = [{"text": "One"}, {"text": " and one.", "train": False}]
    row = answered("It is 2.", reasoning_content=parts)
    with pytest.raises(UntrainedRow, match="a part that is not to be trained on"):
        RowReader("d").conversation(0, "messages", row["messages"])


@pytest.mark.parametrize(
    "spans", [True, "all", [0], [{"begin_offset": 0}], [SPAN | {"end_offset": "7"}]]
)
def test_spans_that_are_none_are_named(spans):
    reader = RowReader("data.jsonl", field_training_detail="spans")
    messages = answered("It is 2.", spans=spans)["messages"]
    where = r"data\.jsonl: row 4, column 'messages\[1\]\.spans': expected a list of objects"
    with pytest.raises(BadRow, match=where):
        reader.conversation(4, "messages", messages)


@pytest.fixture(scope="module")
def splitting(tokenizer):
    return loaded(tokenizer, {"chat_template": "qwen3"} | SPLIT)


PIECES = [
    "<think>",
    "</think>",
    "<reasoning>",
    "</reasoning>",
    "<|begin_of_solution|>",
    " a ",
    "\n",
]


@given(st.lists(st.sampled_from([*PIECES, "<|end_of_solution|>", "b"])).map("".join))
def test_thoughts_are_split_as_axolotl_splits_them(splitting, words):
    split = split_thought(words)
    thought, rest = split or (None, words)
    message = splitting.transform_message({"role": "assistant", "content": words})
    assert (message.get("reasoning_content"), message["content"]) == (thought, rest)
