"""Tokens at the border of prompt and response, over kinds of tokenizers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from axolotl_tspin.strategies.continuation import ResponseTokenizer

WORDS = ["Hello", "world", "answer", "Answer", "5", "42"]


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a prefix space: before a text ("first"), or behind special tokens as well
    ("always", as sentencepiece's legacy behaviour has it)."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        "▁",
        "\n",
        "\n\n",
        *WORDS,
        *(f"▁{w}" for w in WORDS),
        *letters,
    ]
    model = Tokenizer(
        models.Unigram(
            [(w, -2.0 if len(w) > 1 else -8.0) for w in dict.fromkeys(pieces)],
            unk_id=0,
            byte_fallback=False,
        )
    )
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    model.decoder = decoders.Metaspace(prepend_scheme=kind)
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def with_special(tokenizer: PreTrainedTokenizerFast, **strips: bool) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|bot|>", normalized=False, **strips)]}
    )
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: i for i, token in enumerate(["</s>", *alphabet, "ĠA", "ĊĊ"])}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "A"), ("Ċ", "Ċ")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>")


def llama2() -> PreTrainedTokenizerFast:
    """As Llama 2's converted tokenizer: the prefix is put by a normalizer, before every part."""
    tokenizer = sentencepiece("never")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


TOKENIZERS = {
    "byte-level": lambda: with_special(byte_level()),
    "byte-level, rstrip": lambda: with_special(byte_level(), rstrip=True),
    "byte-level, lstrip": lambda: with_special(byte_level(), lstrip=True),
    "sentencepiece": lambda: with_special(sentencepiece("first")),
    "sentencepiece, rstrip": lambda: with_special(sentencepiece("first"), rstrip=True),
    "sentencepiece, legacy": lambda: with_special(sentencepiece("always")),
    "sentencepiece, legacy, rstrip": lambda: with_special(sentencepiece("always"), rstrip=True),
    "normalizer": lambda: with_special(llama2()),
}
ALL = pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)


@pytest.fixture(scope="module")
def made() -> dict:
    return {}


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@ALL
@pytest.mark.parametrize("prompt", ["<|bot|>", "Hello<|bot|>\n", "Hello world\n", "[Hello]", "5:"])
@pytest.mark.parametrize("text", ["Hello", " Hello", "\nHello", "\n\nHello", "  5 <|bot|> Hello"])
def test_a_response_is_what_the_whole_has_behind_the_prompts_tokens(make, prompt, text):
    tokenizer = make()
    prompt_ids, whole = ids_of(tokenizer, prompt), ids_of(tokenizer, prompt + text)
    (response,) = ResponseTokenizer(tokenizer).batch([prompt], [prompt_ids], [text])
    if whole[: len(prompt_ids)] == prompt_ids:
        assert prompt_ids + response == whole
    else:
        # A token spans the border; only then do the two differ.
        assert "\n" in prompt[-1:] + text[:1] or " " in prompt[-1:] + text[:1] or prompt == "5:"
        assert tokenizer.decode(prompt_ids + response) == tokenizer.decode(prompt_ids) + text


@ALL
def test_a_response_behind_a_special_token_begins_as_the_policy_goes_on(make):
    """Behind "<|bot|>", legacy tokenizers put a space; behind a newline they did not."""
    tokenizer = make()
    prompt_ids = ids_of(tokenizer, "<|bot|>")
    response = ResponseTokenizer(tokenizer).behind(prompt_ids, "Hello")
    assert prompt_ids + response == ids_of(tokenizer, "<|bot|>Hello")


def test_a_space_that_a_special_token_strips_is_not_a_part_of_the_response():
    tokenizer = with_special(byte_level(), rstrip=True)
    assert ResponseTokenizer(tokenizer).behind(ids_of(tokenizer, "<|bot|>"), " A") == ids_of(
        tokenizer, "A"
    )


def test_a_prompt_keeps_its_last_token_where_the_whole_would_merge_it():
    """The paper's template ends in a space, which "ĠA" would swallow."""
    tokenizer = byte_level()
    prompt_ids = ids_of(tokenizer, "Response: ")
    response = ResponseTokenizer(tokenizer).behind(prompt_ids, "A")
    assert tokenizer.convert_ids_to_tokens(response) == ["A"]
    assert ids_of(tokenizer, "Response: A")[: len(prompt_ids)] != prompt_ids
    assert tokenizer.decode(prompt_ids + response) == "Response: A"


@ALL
@given(data=st.data())
def test_prompt_and_response_decode_to_their_texts(make, made, data):
    tokenizer = made.setdefault(make, make())
    text = st.text(alphabet="Helo world42\n:", max_size=12)
    prompt, response = data.draw(text.map(lambda t: t + ":")), data.draw(text)
    prompt_ids = ids_of(tokenizer, prompt)
    ids = ResponseTokenizer(tokenizer).behind(prompt_ids, response)
    assert tokenizer.decode(prompt_ids + ids) == tokenizer.decode(prompt_ids) + response
