"""Where a turn ends, and at which tokens sampling stops."""

import copy
import json

import pytest
from transformers import PreTrainedTokenizerFast

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies.turn_end import (
    find_stops,
    find_turn_end,
    model_end_ids,
    without_own_end,
)

ENDS = ["<|end|>", "<|eot|>", "<|call|>", "<|return|>", "<|user|>", "<|start|>", "<|bot|>"]


@pytest.fixture(scope="module")
def special(tokenizer) -> PreTrainedTokenizerFast:
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ENDS})
    return own


def ends(tokenizer, *texts: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(text) for text in texts]


@pytest.mark.parametrize(
    ("last", "followed", "text", "tail"),
    [
        pytest.param("<|end|>\n", "<|end|>\n<|user|>Hi", "<|end|>", "\n", id="ChatML"),
        pytest.param(
            "<|end|>\n<|endoftext|>", "<|end|>\n<|user|>", "<|end|>", "\n<|endoftext|>", id="Phi-3"
        ),
        pytest.param(
            "<|end|><|eot|>", "<|end|><|eot|><|start|>", "<|end|><|eot|>", "", id="Cohere 2"
        ),
        pytest.param("<|return|>", "<|end|><|start|>user", "<|return|>", "", id="gpt-oss"),
        pytest.param("\n<|end|>", "\n<|end|>", "\n<|end|>", "", id="a newline before the end"),
        pytest.param("<|end|>\n<|end|>", "", "<|end|>", "\n<|end|>", id="nothing may follow"),
    ],
)
def test_a_turn_ends_with_what_it_has_in_common_where_another_follows(
    special, last, followed, text, tail
):
    end = find_turn_end(last, followed, special)
    assert (end.text, end.tail) == (text, tail)
    assert special.decode(end.ids) == text


def test_a_template_that_always_begins_the_next_turn_needs_the_models_end(special):
    """Command A's templates put `<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>` behind every turn."""
    last, followed = "<|eot|><|start|><|bot|>", "<|eot|><|start|><|user|>Hi"
    end = find_turn_end(last, followed, special, model_ends=ends(special, "<|eot|>"))
    assert (end.text, end.tail) == ("<|eot|>", "<|start|><|bot|>")
    assert find_turn_end(last, followed, special).text == "<|eot|><|start|>"


def test_a_turn_without_an_end_ends_with_the_next_turn_if_the_model_says_so(special):
    user = ends(special, "<|user|>")
    assert find_turn_end("", "<|user|>\nHi", special, model_ends=user) == ("", "", user)
    eos = [special.eos_token_id]
    assert find_turn_end("\n", "\n<|user|>Hi", special, model_ends=[7]) == ("", "\n", eos)
    named = find_turn_end("", "<|user|>", special, eot_tokens=["<|eot|>"], model_ends=user)
    assert named.ids == ends(special, "<|eot|>")


def test_eot_tokens_name_the_end(special):
    end = find_turn_end("<|call|><|end|>\n", "<|call|><|end|>\n", special, eot_tokens=["<|call|>"])
    assert (end.text, end.tail) == ("<|call|>", "<|end|>\n")
    with pytest.raises(TSpinError, match="`eot_tokens`: 'two words' is"):
        find_turn_end("", "", special, eot_tokens=["two words"])


def test_sampling_stops_at_every_end_and_first_names_the_turns(special):
    plain = find_turn_end("<|end|>", "<|end|>", special)
    calls = find_turn_end("<|call|>", "<|call|>", special)
    model_ends = ends(special, "<|return|>", "<|end|>")
    stops = find_stops(special, [plain, calls], ["<|eot|>"], model_ends)
    wanted = ends(special, "<|end|>", "<|call|>", "<|eot|>", "<|return|>")
    assert stops == (*wanted, special.eos_token_id)


def test_a_models_own_ends_are_read_from_its_generation_configuration(tmp_path):
    assert model_end_ids(str(tmp_path), None) == ()
    for name, eos, wanted in (("one", 5, (5,)), ("many", [5, 7], (5, 7)), ("none", None, ())):
        (tmp_path / name).mkdir()
        text = json.dumps({"eos_token_id": eos})
        (tmp_path / name / "generation_config.json").write_text(text)
        assert model_end_ids(str(tmp_path / name), None) == wanted


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("Five", "Five"),
        ("Five<|end|>", "Five"),
        ("Five<|end|>\n", "Five"),
        ("Five <|end|><|eot|> ", "Five "),
        ("Five\n", "Five\n"),
        ("<|end|> ends a turn", "<|end|> ends a turn"),
        ("<|end|>", ""),
    ],
)
def test_words_lose_the_end_that_the_template_gives_them(words, kept):
    assert without_own_end(words, ["<|end|>", "<|eot|>"]) == kept
