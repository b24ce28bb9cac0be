"""Columns that look like content and are not used, in the shapes of public data sets."""

import pytest

from axolotl_tspin.strategies.unused_columns import (
    unused_columns_warning,
    unused_content_columns,
)

TOPICS = ["the river Nile", "a bag of apples", "light and shadow", "old trains", "two sisters"]
ROWS = range(20)


def asked(n: int) -> str:
    return f"Write {n} short lines about {TOPICS[n % 5]}."


def answered(n: int) -> str:
    return f"Here are {n} lines, and they are all about {TOPICS[n % 5]}."


def passage(n: int) -> str:
    return f"In the year {1900 + n} somebody said that {TOPICS[n % 5]} would matter most."


def unused(rows, columns, used):
    """What is named when the texts of some columns make up the rows' texts."""
    texts = ["### " + "\n\n".join(str(row[column]) for column in columns) for row in rows]
    return unused_content_columns(rows, texts, used)


def alpaca(n: int) -> dict:
    # About half of Alpaca's rows have no input; `text` renders the three again.
    context = passage(n) if n % 2 else ""
    text = f"Below is an instruction.\n\n{asked(n)}\n\n{context}\n\n### Response:\n{answered(n)}"
    return {"instruction": asked(n), "input": context, "output": answered(n), "text": text}


def test_alpaca_with_its_instruction_alone_and_with_its_input():
    rows = [alpaca(n) for n in ROWS]
    used = ["instruction", "output"]
    assert unused(rows, used, used) == ["input"]
    used = ["instruction", "input", "output"]
    assert unused(rows, used, used) == []
    assert unused(rows, used, ["instruction", "output"]) == []  # found in the texts


def test_dolly():
    categories = ["closed_qa", "creative_writing", "open_qa"]
    rows = [
        {
            "instruction": asked(n),
            "context": "" if n % 3 else passage(n),
            "response": answered(n),
            "category": categories[n % 3],
        }
        for n in ROWS
    ]
    used = ["instruction", "response"]
    assert unused(rows, used, used) == ["context"]


def test_ultrachat_whose_prompt_and_text_are_in_its_messages():
    rows = [
        {
            "prompt": asked(n) + " \n",
            "prompt_id": f"{n:064x}",
            "text": f"Human: {asked(n)}\n\nAssistant: {answered(n)}",
            "messages": [
                {"role": "user", "content": asked(n)},
                {"role": "assistant", "content": answered(n)},
            ],
        }
        for n in ROWS
    ]
    texts = [f"<user>{asked(n)}</user> {answered(n)}" for n in ROWS]
    assert unused_content_columns(rows, texts, []) == ["text"]
    assert unused_content_columns(rows, texts, ["messages"]) == []


def test_openhermes():
    rows = [
        {
            "conversations": [{"from": "human", "value": asked(n)}],
            "source": "airoboros2.2",
            "title": None,
            "views": n,
            "idx": str(n),
            "language": "English",
            "model_name": "gpt-4",
            "hash": f"{n * 7919:x}",
            "avatarUrl": f"https://example.org/a/{n}-an-avatar-of-someone.png",
            "custom_instruction": n % 2 == 0,
            "system_prompt": f"You are an assistant who knows all about {TOPICS[n % 5]}.",
            "topic": TOPICS[n % 5],
        }
        for n in ROWS
    ]
    texts = [asked(n) for n in ROWS]
    assert unused_content_columns(rows, texts, ["conversations"]) == ["system_prompt"]


@pytest.mark.parametrize(
    "value",
    [
        lambda n: "gsm8k",
        lambda n: "train",
        lambda n: f"chosen by annotator number {'one' if n % 2 else 'two'}",
        lambda n: f"2024-01-{n + 1:02d} 10:30:00",
        lambda n: f"https://example.org/some path/{n}",
        lambda n: "This data is licensed under the terms that its authors have chosen for it.",
        lambda n: f'{{"score": {n}, "note": "it was rated by people in a hurry"}}',
        lambda n: [f"tag{n}", "maths"],
        lambda n: None,
        lambda n: n,
        lambda n: {"some": passage(n)},
        lambda n: answered(n).replace(" ", "\n "),
        lambda n: [asked(n), answered(n)],
        lambda n: passage(n) if n == 0 else None,
    ],
)
def test_labels_ids_and_texts_that_are_used_are_not_named(value):
    rows = [{"a": asked(n), "b": answered(n), "extra": value(n)} for n in ROWS]
    assert unused(rows, ["a", "b"], ["a", "b"]) == []


@pytest.mark.parametrize(
    "value",
    [
        passage,
        lambda n: passage(n) if n % 5 == 0 else None,
        lambda n: [asked(n), passage(n)],
        lambda n: f"请用第{n}种方法解释这个问题的答案",
        lambda n: f"You are an assistant who always explains the answer in {n % 4} long steps.",
        # A few rows repeat it by chance.
        lambda n: answered(n) if n % 4 == 0 else passage(n),
    ],
)
def test_content_is_named(value):
    rows = [{"a": asked(n), "b": answered(n), "extra": value(n)} for n in ROWS]
    assert unused(rows, ["a", "b"], ["a", "b"]) == ["extra"]
    assert unused(rows, ["a", "b"], ["a", "b", "extra"]) == []


def test_the_warning_names_the_columns_and_remedies():
    one = unused_columns_warning("data.jsonl", ["input"])
    assert one.startswith("data.jsonl: the column 'input' looks like content")
    two = unused_columns_warning("data.jsonl", ["input", "context"])
    assert "the columns 'input', 'context' look like" in two
    assert all("`prompt_template`" in text and "remove" in text for text in (one, two))
