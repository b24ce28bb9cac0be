"""Reading rows: shapes that are understood, and errors that name file, row and key."""

import json

import pytest

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies.rows import RowReader

OPENAI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
    for m in OPENAI
]


@pytest.mark.parametrize("messages", [OPENAI, SHAREGPT, [*OPENAI, OPENAI[1]]])
def test_the_last_assistant_turn_is_the_response_and_all_before_it_the_prompt(messages):
    prompt, response = RowReader("d").conversation(0, "messages", messages)
    assert prompt == OPENAI[:4]
    assert response == OPENAI[4]


def test_property_mappings_roles_and_system_messages():
    reader = RowReader(
        "d",
        message_keys={"role": "who", "content": "says"},
        roles={"user": ["kid"], "assistant": ["tutor"]},
        drop_system_message=True,
    )
    messages = [
        {"who": "system", "says": "s"},
        {"who": "kid", "says": "2?"},
        {"who": "tutor", "says": "yes", "name": "T", "tool_calls": None},
    ]
    prompt, response = reader.conversation(0, "chat", messages)
    assert prompt == [{"role": "user", "content": "2?"}]
    assert response == {"role": "assistant", "content": "yes", "name": "T"}


def test_properties_that_are_mapped_are_read_and_keys_without_a_value_are_not():
    reader = RowReader(
        "d", message_keys={"role": "role", "content": "text", "reasoning_content": "thought"}
    )
    asked = {"role": "user", "text": "2?", "content": "draft", "thought": None}
    answered = {"role": "assistant", "text": "2", "thought": "Two.", "reasoning_content": "old"}
    assert reader.conversation(0, "messages", [asked, answered]) == (
        [{"role": "user", "content": "2?"}],
        {"role": "assistant", "content": "2", "reasoning_content": "Two."},
    )


def test_sharegpts_names_are_known_where_axolotl_filled_in_its_defaults():
    """Its validation leaves `{role: role, content: content}` in every data set's mappings."""
    defaults = {"role": "role", "content": "content", "reasoning_content": "thought"}
    reader = RowReader("d", message_keys=defaults)
    prompt, response = reader.conversation(0, "messages", SHAREGPT)
    assert (prompt, response) == (OPENAI[:4], OPENAI[4])
    united = [{"role": None, "content": None} | message for message in SHAREGPT]
    assert reader.conversation(0, "messages", united) == (prompt, response)


CALL = {"id": "c1", "function": {"name": "add", "arguments": {"x": 1, "city": None}}}
ASK = {"role": "user", "content": "1 + 1?"}
IMAGE, LOOK = {"type": "image", "url": "x"}, {"type": "text", "text": "look"}
RESULT = {"role": "tool", "content": ""}
ANSWER = {"role": "assistant", "content": "2"}


@pytest.mark.parametrize("content", [None, "", "I add."])
@pytest.mark.parametrize(
    "arguments", [{"x": 1, "city": None}, '{"x": 1}', '{"x": 1, "nested": {"y": null}}']
)
def test_arguments_of_tool_calls_are_json_text_or_what_is_left_without_nulls(content, arguments):
    call = {"id": "c1", "type": None, "function": {"name": "add", "arguments": arguments}}
    messages = [ASK, {"role": "assistant", "content": content, "tool_calls": [call]}]
    prompt, response = RowReader("d").conversation(0, "messages", [*messages, RESULT, ANSWER])
    nested = {"nested": {"y": None}} if "nested" in arguments else {}
    read = {"id": "c1", "function": {"name": "add", "arguments": {"x": 1} | nested}}
    called = {"role": "assistant", "content": content or "", "tool_calls": [read]}
    assert (prompt, response) == ([ASK, called, RESULT], ANSWER)
    assert RowReader("d").conversation(0, "messages", messages) == ([ASK], called)
    assert call["function"]["arguments"] == arguments, "the row itself stays as it is"


def test_calls_without_a_function_around_them_are_read_as_well():
    calls = '[{"name": "add", "arguments": "{\\"x\\": 1}"}]'
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    _, response = RowReader("d").conversation(0, "messages", [ASK, called])
    assert response["tool_calls"] == [{"name": "add", "arguments": {"x": 1}}]


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("value", "tools"),
    [
        (None, None),
        ([], None),
        ("[]", None),
        ([TOOL], [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        ([{"type": "function", "function": TOOL["function"] | {"strict": None}}], [TOOL]),
        (
            [{"function": {"name": "f", "parameters": "{}"}}],
            [{"function": {"name": "f", "parameters": {}}}],
        ),
        ([{"name": "f", "parameters": "{}"}], [{"name": "f", "parameters": {}}]),
    ],
)
def test_tools(value, tools):
    assert RowReader("d").tools(0, "tools", value) == tools


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("add(x, y)", "'tools': expected JSON, found str 'add"),
        ({"name": "f"}, "'tools': expected a list of objects, found dict"),
        (["add"], "'tools': expected a list of objects"),
        ([TOOL, {"function": {"parameters": "{"}}], r"'tools\[1\].parameters': expected JSON"),
    ],
)
def test_bad_tools(value, problem):
    with pytest.raises(TSpinError, match=rf"data\.jsonl: row 2, column {problem}"):
        RowReader("data.jsonl").tools(2, "tools", value)


@pytest.mark.parametrize(
    "value",
    [
        "4",
        {"role": "assistant", "content": "4"},
        {"from": "gpt", "value": "4"},
        OPENAI,
        [{"role": "assistant", "content": [{"type": "text", "text": "4"}]}],
    ],
)
def test_a_response_is_text_or_an_assistant_message(value):
    assert RowReader("d").response(0, "synthetic", value) == {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    "value", ["", " \n", {"role": "assistant", "content": ""}, [ASK, {"from": "gpt", "value": ""}]]
)
def test_a_sampled_response_may_be_blank_and_an_annotated_one_not(value):
    with pytest.raises(TSpinError, match=r"row 1, column 'synthetic.*is empty"):
        RowReader("d").response(1, "synthetic", value)
    words = RowReader("d").response(1, "synthetic", value, may_be_blank=True)["content"]
    assert words == (value if isinstance(value, str) else "")
    with pytest.raises(TSpinError, match="found null"):
        RowReader("d").response(1, "synthetic", None, may_be_blank=True)


def test_a_response_under_a_text_template_has_no_tool_calls():
    called = {"role": "assistant", "content": "I add.", "tool_calls": [CALL]}
    with pytest.raises(TSpinError, match=r"row 0, column 'response'.*t_spin\.chat_template"):
        RowReader("d").words(0, "response", called)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "found null"),
        ("", "is empty"),
        ("  \n", "is empty"),
        (7, "found int 7"),
        ({"role": "user", "content": "x"}, "found one of 'user'"),
        ({"role": "assistant", "content": None}, "found null"),
        ([], "found an empty list"),
    ],
)
def test_a_bad_response(value, problem):
    with pytest.raises(TSpinError, match=rf"data\.jsonl: row 3, column 'synthetic'.*{problem}"):
        RowReader("data.jsonl").response(3, "synthetic", value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "expected a list of messages, found null.*field_messages"),
        ("text", "expected a list of messages, found str"),
        (["text"], "message 0 is str 'text', not a message"),
        (OPENAI[:2], "no assistant turn"),
        (OPENAI[2:3], "nothing comes before the assistant turn"),
        ([{"role": "alien", "content": "x"}], "unknown role 'alien'.*roles"),
        ([{"speaker": "user", "text": "x"}], "keys .*message_property_mappings"),
        ([*OPENAI[:2], {"role": "assistant", "content": ""}], r"\[2\].*is empty"),
        ([*OPENAI[:2], {"role": "assistant", "content": None}], r"\[2\].*found null"),
        ([{"role": "user", "content": None}, ANSWER], r"\[0\].*found null"),
        ([{"role": "user", "content": "  "}, ANSWER], r"\[0\].*is empty"),
        ([ASK, ANSWER | {"content": ""}, ASK, ANSWER], r"\[1\].*is empty"),
        ([ASK | {"content": [IMAGE, LOOK]}, ANSWER], r"\[0\].*content parts.*image, text.*drop"),
        ([ASK | {"content": [{"type": "text", "text": None}]}, ANSWER], r"\[0\].*is empty"),
        ([ASK | {"content": [LOOK | {"image_url": "x"}]}, ANSWER], r"\[0\].*content parts"),
        ([ASK | {"content": [{"words": "Look"}]}, ANSWER], r"\[0\].*content parts"),
        ([ASK, ANSWER | {"reasoning_content": [IMAGE]}], r"\[1\]\.reasoning_content.*parts"),
        ([{"role": "user"}, ANSWER], r"keys \['role'\].*message_property_mappings"),
        ([ASK | {"content": ["Look"]}, ANSWER], r"\[0\].*found list"),
        ([ASK | {"tool_calls": [CALL], "content": None}, ANSWER], r"\[0\].*found null"),
        ([ASK, ANSWER | {"tool_calls": "add(1)"}], r"\[1\]\.tool_calls.*expected JSON"),
        ([ASK, ANSWER | {"tool_calls": ["add"]}], r"\[1\]\.tool_calls.*list of objects"),
        (
            [ASK, ANSWER | {"tool_calls": [{"function": {"arguments": "x=1"}}]}],
            r"\[1\]\.tool_calls\[0\]\.arguments.*expected JSON, found str 'x=1'",
        ),
    ],
)
def test_a_bad_conversation(value, problem):
    with pytest.raises(TSpinError, match=rf"data\.jsonl: row 5, column 'messages.*{problem}"):
        RowReader("data.jsonl").conversation(5, "messages", value)


def test_what_may_be_blank_in_a_prompt_and_what_is_not_looked_at():
    messages = [{"role": "system", "content": ""}, ASK, RESULT, ANSWER]
    assert RowReader("d").conversation(0, "messages", messages) == (messages[:3], ANSWER)
    dropped = [{"role": "system", "content": 7}, ASK, ANSWER]
    reader = RowReader("d", drop_system_message=True)
    assert reader.conversation(0, "messages", dropped) == ([ASK], ANSWER)
    followed = [ASK, ANSWER, {"role": "user", "content": None}]
    assert RowReader("d").conversation(0, "messages", followed) == ([ASK], ANSWER)


def test_content_parts_that_are_all_text_are_joined():
    parts = [{"type": "text", "text": "1 ", "image": None}, {"text": "+ 1?"}]
    prompt, _ = RowReader("d").conversation(0, "messages", [ASK | {"content": parts}, ANSWER])
    assert prompt == [ASK]


def test_a_sampled_thought_is_split_from_its_words_like_an_annotated_one():
    thought, words = "<think>Two.</think> 2", {"role": "assistant", "content": "2"}
    split = words | {"reasoning_content": "Two."}
    for value in (thought, words | {"content": thought}, [ASK, words | {"content": thought}]):
        assert RowReader("d", split_thinking=True).response(0, "synthetic", value) == split
        assert RowReader("d").response(0, "synthetic", value) == words | {"content": thought}


@pytest.mark.parametrize("role", ["system", "tool"])
def test_a_message_that_may_be_empty_has_no_words_where_they_are_null(role):
    for message in ({"role": role}, {"role": role, "content": None}):
        prompt, _ = RowReader("d").conversation(0, "messages", [ASK, message, ANSWER])
        assert prompt == [ASK, {"role": role, "content": ""}]
