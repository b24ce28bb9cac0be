"""Thoughts of reasoning models under Qwen3's template, as docs/data.md says."""

import logging

import pytest
from support.strategies import prompt_and_response, read_entry
from support.templates import tokenizer_for

from axolotl_tspin.errors import TSpinError

QUESTION = {"role": "user", "content": "2 + 3?"}
BARE = {"role": "assistant", "content": "Five."}
IN_THE_TEXT = BARE | {"content": "<think>\nI add.\n</think>\n\nFive."}
BESIDE_IT = BARE | {"reasoning_content": "I add."}
OTHER_TAGS = BARE | {"content": "<reasoning>I add.</reasoning>Five."}
PROMPT = "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def qwen3(tokenizer):
    return tokenizer_for("trl/qwen3", tokenizer)


def read(tokenizer, *messages, task="generate", ds_cfg=None, extra=None, **cfg):
    entry = {"path": "data.jsonl", "type": "t_spin.chat_template"} | (ds_cfg or {})
    rows = [{"messages": [QUESTION, *messages]} | (extra or {})]
    (row,) = read_entry(tokenizer, entry, rows, task, **cfg)
    return row


def texts(tokenizer, *messages, **keys):
    return prompt_and_response(tokenizer, read(tokenizer, *messages, **keys))


@pytest.mark.parametrize("answer", [IN_THE_TEXT, BESIDE_IT], ids=["in the text", "beside it"])
def test_a_thought_is_trained(qwen3, answer):
    assert texts(qwen3, answer) == (PROMPT, "<think>\nI add.\n</think>\n\nFive.<|im_end|>")


def test_a_thought_between_other_tags_is_split_from_the_words(qwen3):
    _, response = texts(qwen3, OTHER_TAGS, ds_cfg={"split_thinking": True})
    assert response == "<think>\nI add.\n</think>\n\nFive.<|im_end|>"
    _, response = texts(qwen3, OTHER_TAGS)
    assert response == f"{NO_THOUGHT}<reasoning>I add.</reasoning>Five.<|im_end|>"


def test_a_response_without_a_thought_is_trained_with_an_empty_one(qwen3):
    assert texts(qwen3, BARE) == (PROMPT, f"{NO_THOUGHT}Five.<|im_end|>")


def test_with_thinking_off_the_empty_thought_is_in_the_prompt(qwen3):
    assert texts(qwen3, BARE, **OFF) == (PROMPT + NO_THOUGHT, "Five.<|im_end|>")


@pytest.mark.parametrize("answer", [IN_THE_TEXT, BESIDE_IT], ids=["in the text", "beside it"])
def test_with_thinking_off_a_thought_is_refused(qwen3, answer):
    with pytest.raises(TSpinError, match=r"row 0: .*generation prompt"):
        texts(qwen3, answer, **OFF)


@pytest.mark.parametrize("answer", [IN_THE_TEXT, BESIDE_IT], ids=["in the text", "beside it"])
def test_a_thought_that_the_template_drops_is_refused(tokenizer, answer):
    """DeepSeek's template cuts it off the words; ChatML's has no key for it."""
    own = tokenizer_for("axolotl/deepseek_v3", tokenizer)
    with pytest.raises(TSpinError, match=r"row 0: the chat template leaves out .*reasoning"):
        texts(own, answer)


@pytest.mark.parametrize("answer", [BARE, IN_THE_TEXT], ids=["bare", "thought"])
def test_a_thought_of_an_earlier_turn_is_left_out_and_counted(qwen3, answer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("axolotl_tspin"), "propagate", True)
    again = QUESTION | {"content": "3 + 4?"}
    prompt, _ = texts(qwen3, answer, again, BARE)
    assert prompt.startswith(f"{PROMPT}Five.<|im_end|>\n")
    assert ("reasoning of assistant turns" in caplog.text) == (answer == IN_THE_TEXT)


def test_a_sampled_response_that_was_cut_within_its_thought_has_no_end(qwen3):
    cut = {
        "synthetic": "<think>\nI",
        "synthetic_finish_reason": "length",
        "proto_synthetic": "<think>\nI add.\n</think>\n\nSix.",
    }
    row = read(qwen3, BARE, task="train", extra=cut)
    assert qwen3.decode(row["synthetic_ids"]) == "<think>\nI"
    assert qwen3.decode(row["proto_synthetic_ids"]).endswith("</think>\n\nSix.<|im_end|>")


def test_sequence_len_bounds_a_thought(qwen3):
    whole = read(qwen3, IN_THE_TEXT)["input_ids"]
    cut = read(qwen3, IN_THE_TEXT, sequence_len=len(whole) - 8)["input_ids"]
    assert cut == whole[:-8]
    with pytest.raises(TSpinError, match="none of its 1 rows is left"):
        read(
            qwen3,
            IN_THE_TEXT,
            sequence_len=len(whole) - 8,
            excess_length_strategy="drop",
        )
