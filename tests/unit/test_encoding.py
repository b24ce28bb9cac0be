"""Prompts and responses as tokens: one rule for training and for generation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data import CHATML
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies.chat_encoding import ChatEncoder
from axolotl_tspin.strategies.continuation import ResponseTokenizer
from axolotl_tspin.strategies.encoding import TextEncoder
from axolotl_tspin.strategies.text_template import PAPER_TEMPLATE, rendered

USER = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def sentencepiece_tokenizer():
    """A tokenizer that, as Llama 2's and Mistral's, puts a space before a text's first word."""
    letters = [chr(c) for c in range(33, 127)]
    words = ["<unk>", "<s>", "</s>", "▁", "\n", "▁Hello", "Hello", "▁Response", *letters]
    pieces = [(w, -2.0 if len(w) > 1 else -8.0) for w in dict.fromkeys(words)]
    model = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    model.decoder = decoders.Metaspace()
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def encoded(encoder, prompt, response, ended=True):
    """A row with one response."""
    (triplet,) = encoder.triplets([encoder.text(prompt, [(response, ended)])])
    return triplet


@given(st.text(max_size=40))
def test_a_response_decodes_to_its_text_after_every_prompt(tokenizer, text):
    encoder = TextEncoder(tokenizer)
    row = encoded(encoder, "Add the numbers.", text)
    assert row.annotated[-1:] == [tokenizer.eos_token_id]
    assert tokenizer.decode(row.prompt + row.annotated[:-1]) == row.prompt_text + text


def test_the_papers_template(tokenizer):
    prompt = rendered(PAPER_TEMPLATE, {"prompt": "Say {hello}."})
    row = encoded(TextEncoder(tokenizer), prompt, "Hello.")
    assert row.prompt_text == "### Instruction: Say {hello}.\n\n### Response: "
    assert PAPER_TEMPLATE.format(prompt="x") == "### Instruction: x\n\n### Response: "
    assert tokenizer.decode(row.prompt) == row.prompt_text


def test_a_continuation_has_no_space_of_its_own(sentencepiece_tokenizer):
    plain = sentencepiece_tokenizer("Hello", add_special_tokens=False)["input_ids"]
    prompt = sentencepiece_tokenizer("Response", add_special_tokens=False)["input_ids"]
    continued = ResponseTokenizer(sentencepiece_tokenizer).behind(prompt, "Hello")
    assert sentencepiece_tokenizer.convert_ids_to_tokens(plain) == ["▁Hello"]
    assert sentencepiece_tokenizer.convert_ids_to_tokens(continued) == ["Hello"]


def test_a_text_template_begins_as_the_tokenizer_begins_a_text(sentencepiece_tokenizer):
    row = encoded(TextEncoder(sentencepiece_tokenizer), "a Response", "Hello")
    assert row.prompt[0] == 1
    assert [*row.prompt, *row.annotated].count(1) == 1


def test_chat_prompt_is_the_generation_prompt_and_a_response_ends_with_the_end_of_turn(tokenizer):
    encoder = ChatEncoder(tokenizer, CHATML)
    row = encoded(encoder, USER, "It is 5.")
    text = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    assert row.prompt_text == text
    assert row.prompt == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(row.annotated) == "It is 5.<|im_end|>"
    assert encoded(encoder, USER, "It is 5.", ended=False).annotated == row.annotated[:-1]
    whole = tokenizer.apply_chat_template(
        [*USER, {"role": "assistant", "content": "It is 5."}], tokenize=False
    )
    assert tokenizer.decode(row.prompt + row.annotated) + "\n" == whole


def test_the_end_of_turn_may_stand_behind_other_tokens_or_be_missing(tokenizer):
    newline_before = CHATML.replace("<|im_end|>\n{% endfor", "\n<|im_end|>\n{% endfor")
    ids = encoded(ChatEncoder(tokenizer, newline_before), USER, "Five").annotated
    assert tokenizer.decode(ids) == "Five\n<|im_end|>"
    textual = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    textual += "{% if add_generation_prompt %}assistant: {% endif %}"
    encoder = ChatEncoder(tokenizer, textual)
    assert tokenizer.decode(encoded(encoder, USER, "Five").annotated) == "Five<|im_end|>"
    assert encoder.stop_ids == (tokenizer.eos_token_id,)


def test_eot_tokens_names_the_end_of_turn(tokenizer):
    template = CHATML.replace("<|im_end|>", "<|endoftext|>")
    encoder = ChatEncoder(tokenizer, template, eot_tokens=["<|endoftext|>"])
    assert encoder.stop_ids[0] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    with pytest.raises(TSpinError, match="eot_tokens"):
        ChatEncoder(tokenizer, CHATML, eot_tokens=["two tokens"])


def test_a_template_whose_turns_begin_otherwise_than_its_generation_prompt_is_refused(tokenizer):
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    with pytest.raises(TSpinError, match=r"my data: .*generation prompt.*chat_template_jinja"):
        ChatEncoder(tokenizer, template, source="my data").text(USER, [("Five", True)])


@pytest.mark.parametrize("ended", [True, False])
def test_a_response_that_goes_on_after_an_end_is_refused(tokenizer, ended):
    text = "The token <|im_end|> ends a turn."
    message = r"my data: row 3: a response has <\|im_end\|> within it"
    for encoder in (ChatEncoder(tokenizer, CHATML), TextEncoder(tokenizer)):
        prompt = USER if isinstance(encoder, ChatEncoder) else "Say."
        with pytest.raises(TSpinError, match=message):
            encoder.text(prompt, [(text, ended)], where="my data: row 3")
    other = "The token <|im_start|> begins a turn."
    assert tokenizer.decode(encoded(TextEncoder(tokenizer), "a", other).annotated[:-1]) == other


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_many_rows_at_once_are_the_rows_one_by_one(sentencepiece_tokenizer, texts):
    encoder = TextEncoder(sentencepiece_tokenizer)
    responses = [[(t, True), (t[::-1], False), (t + t, True)] for t in texts]
    rows = [encoder.text(f"{r[0][0]} Response", r) for r in responses]
    assert encoder.triplets(rows) == [encoder.triplets([row])[0] for row in rows]
