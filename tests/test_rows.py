"""Reading rows: shapes that are understood, and errors that name file, row and key."""

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
    assert RowReader("d").response(0, "synthetic", value) == "4"


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
    ],
)
def test_a_bad_conversation(value, problem):
    with pytest.raises(TSpinError, match=rf"data\.jsonl: row 5, column 'messages.*{problem}"):
        RowReader("data.jsonl").conversation(5, "messages", value)
