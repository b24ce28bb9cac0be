"""`turns: last | first | each`: which assistant turn of a conversation is answered."""

import logging

import pytest
from axolotl.utils.data.shared import generate_dataset_hash_from_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from axolotl_tspin.config import ResolvedRun, TSpinConfig
from axolotl_tspin.errors import BadRow, TSpinError, UntrainedRow
from axolotl_tspin.resolve.data_sets import translate_entry
from axolotl_tspin.strategies import chat_template
from axolotl_tspin.strategies.rows import BEHIND, Conversation, RowReader
from axolotl_tspin.triplets import from_row

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "2 + 3?"}
ANSWER = {"role": "assistant", "content": "5"}
AGAIN = {"role": "user", "content": "And 4 + 4?"}
EIGHT = {"role": "assistant", "content": "8"}
TWO = [SYSTEM, ASK, ANSWER, AGAIN, EIGHT, {"role": "user", "content": "Thanks"}]
UNTRAINED = ANSWER | {"train": False}


def encode(tokenizer, rows, turns=None, task="generate", on_bad_rows="raise"):
    resolved = ResolvedRun(task=task, initial_policy="p", run_dir="r")
    t_spin = TSpinConfig(resolved=resolved, on_bad_rows=on_bad_rows).model_dump(exclude_none=True)
    cfg = DictDefault({"sequence_len": 256, "t_spin": t_spin, "base_model": "p"})
    entry = {"path": "data.jsonl", "type": "t_spin.chat_template"}
    entry |= {"turns": turns} if turns else {}
    translate_entry(entry, "datasets[0]")
    ds_cfg = DictDefault(SFTDataset(**entry).model_dump(exclude_none=True))
    data = Dataset.from_list([row if isinstance(row, dict) else {"messages": row} for row in rows])
    return chat_template.load(tokenizer, cfg, ds_cfg).wrap_dataset(data, process_count=1)


def texts(tokenizer, encoded):
    return [tokenizer.decode(row["input_ids"]) for row in encoded]


def rendered(tokenizer, *conversations):
    return [
        tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
        for messages in conversations
    ]


@pytest.mark.parametrize(
    ("turns", "ends"), [(None, [5]), ("last", [5]), ("first", [3]), ("each", [3, 5])]
)
def test_the_turns_that_are_answered(tokenizer, turns, ends):
    encoded = encode(tokenizer, [TWO, [ASK, ANSWER]], turns)
    conversations = [TWO[:end] for end in ends]
    assert texts(tokenizer, encoded) == rendered(tokenizer, *conversations, [ASK, ANSWER])


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("axolotl_tspin"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def test_turns_that_are_not_trained_on_are_counted_and_stay_in_later_prompts(tokenizer, log):
    marked = [ASK, UNTRAINED, AGAIN, EIGHT]
    assert texts(tokenizer, encode(tokenizer, [marked, TWO], "each")) == rendered(
        tokenizer, [ASK, ANSWER, AGAIN, EIGHT], TWO[:3], TWO[:5]
    )
    assert "1 × an assistant turn with 'train: False'" in log.text
    assert len(encode(tokenizer, [marked, TWO], "first")) == 1
    assert len(encode(tokenizer, [marked, TWO], "last")) == 2


def test_a_fault_is_that_of_its_turn(tokenizer, log):
    empty = {"role": "assistant", "content": " "}
    faulty = [*TWO[:5], AGAIN, empty, ASK, ANSWER]
    with pytest.raises(TSpinError, match=r"row 1, column 'messages\[6\]': the text is empty"):
        encode(tokenizer, [TWO, faulty], "each")
    kept = encode(tokenizer, [faulty, TWO], "each", on_bad_rows="drop")
    good = rendered(tokenizer, TWO[:3], TWO[:5])
    assert texts(tokenizer, kept) == good + good
    assert "1 × empty text" in log.text and "1 × a turn behind a bad message" in log.text
    assert texts(tokenizer, encode(tokenizer, [faulty], "first")) == good[:1]
    with pytest.raises(TSpinError, match=r"messages\[6\]"):
        encode(tokenizer, [faulty], "last")


def test_a_conversation_that_the_assistant_begins_has_a_first_turn_without_prompt(tokenizer):
    greeted = [ANSWER, ASK, EIGHT]
    for turns in ("first", "each"):
        with pytest.raises(
            TSpinError, match=r"row 0, column 'messages\[0\]': nothing comes before"
        ):
            encode(tokenizer, [greeted], turns)
    assert texts(tokenizer, encode(tokenizer, [greeted], "last")) == rendered(tokenizer, greeted)
    kept = encode(tokenizer, [greeted], "each", on_bad_rows="drop")
    assert texts(tokenizer, kept) == rendered(tokenizer, greeted)


def test_a_turn_that_the_template_cannot_render_is_named(tokenizer, monkeypatch):
    twice = "{% if messages | length > 4 %}{{ raise_exception('too long') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", twice + tokenizer.chat_template)
    with pytest.raises(TSpinError, match=r"data\.jsonl: row 1, turn 2: .*too long"):
        encode(tokenizer, [[ASK, ANSWER], TWO], "each")
    with pytest.raises(TSpinError, match=r"data\.jsonl: row 1: .*too long"):
        encode(tokenizer, [[ASK, ANSWER], TWO], "last")


def test_responses_of_ones_own_go_with_one_turn(tokenizer):
    row = {"messages": TWO, "synthetic": "six", "proto_synthetic": "seven"}
    (first,) = encode(tokenizer, [row], "first", task="train")
    answers = [tokenizer.decode(ids) for ids in from_row(first)[1:]]
    assert answers == [f"{words}<|im_end|>" for words in ("5", "six", "seven")]
    with pytest.raises(TSpinError, match=r"data\.jsonl: `turns: each` .*'synthetic' and 'proto_"):
        encode(tokenizer, [row], "each", task="train")


def test_another_value_is_refused(tokenizer):
    with pytest.raises(TSpinError, match="`turns: middle`: expected last, first or each"):
        encode(tokenizer, [TWO], "middle")


@pytest.mark.parametrize("kind", ["spin", "instruction"])
def test_the_key_has_no_effect_with_other_types(kind):
    entry = {"path": "d", "type": f"t_spin.{kind}", "turns": "first"}
    with pytest.raises(TSpinError, match=r"`datasets\[0\]\.turns` has no effect with"):
        translate_entry(entry, "datasets[0]")


def test_the_key_enters_axolotls_hash_of_prepared_data():
    cfg = DictDefault({"sequence_len": 256})
    hashes = set()
    for turns in ("last", "first", "each"):
        entry = {"path": "d", "type": "t_spin.chat_template", "turns": turns}
        translate_entry(entry, "datasets[0]")
        hashes.add(generate_dataset_hash_from_config(cfg, [DictDefault(entry)], "tokenizer"))
    assert len(hashes) == 3


MESSAGES = [
    SYSTEM,
    ASK,
    AGAIN,
    ANSWER,
    EIGHT,
    UNTRAINED,
    {"role": "tool", "content": None},
    {"role": "assistant", "content": None},
    {"role": "alien", "content": "x"},
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.sampled_from([None, "", "Be kind."]))
def test_each_turn_is_the_last_of_the_conversation_up_to_it(messages, system):
    """Of whatever conversation: a fault ends it, and what comes before is as if it ended there."""
    reader = RowReader("d")
    found = reader.conversations(0, "messages", messages, system)
    ends = [i + 1 for i, message in enumerate(messages) if message["role"] == "assistant"]
    for conversation, end in zip(found, ends, strict=False):
        (*_, last) = reader.conversations(0, "messages", messages[:end], system)
        if isinstance(last, Conversation):
            assert conversation == last
            assert last.response["content"] == messages[end - 1]["content"]
        else:
            assert type(conversation) is type(last)
    faults = [f for f in found if isinstance(f, BadRow) and not isinstance(f, UntrainedRow)]
    assert len(found) >= len(ends), "every turn is counted"
    kinds = [f.kind for f in faults if f.kind != "no prompt"]
    assert all(kind == BEHIND for kind in kinds[1:]), "one fault ends a conversation"
