"""Every chat template that Axolotl and TRL ship × conversations: what is trained, what is refused.

The trained response is what the template renders of the whole conversation behind the generation
prompt, up to and including the token with which the model ends a turn. What cannot be so is
refused. `TABLE` writes down which, so that a refusal that comes or goes is seen.
"""

import copy
import itertools
import json

import pytest
from jinja2 import TemplateError
from support.templates import (
    Family,
    Talk,
    family_of,
    talks,
    templates,
    tokenizer_for,
    words_of,
)

from axolotl_tspin.errors import BadRow, TSpinError
from axolotl_tspin.strategies.chat_encoding import ChatEncoder
from axolotl_tspin.strategies.encoding import RowText, Triplet

KINDS = {
    "messages that the template cannot render": "-",
    "words of the response that the template leaves out": "w",
    "reasoning of the response that the template leaves out": "r",
    "tool calls of the response that the template leaves out": "c",
    "a prompt that the template changes once it is answered": "p",
    "a system message that the template moves": "s",
}
"""The letter of each kind of refusal."""

WHOLE = "!"
"""The letter of a template that cannot be taken at all."""

TALKS = (
    "plain",
    "system",
    "turns",
    "spaces",
    "think",
    "reason",
    "echo",
    "past",
    "tools",
    "call",
    "null",
    "words",
    "calls",
    "result",
    "ended",
)
TABLE = """
axolotl/alpaca                      .....r...cccc..
axolotl/aya                         .....r...cccc-.
axolotl/chatml                      .....r...cccc..
axolotl/cohere                      .....r...cccc-.
axolotl/command_a                   .....r...cccc..
axolotl/command_a_rag               .....r.....w...
axolotl/command_a_tool_use          .....r.....w...
axolotl/deepseek_v2                 .....r...cccc..
axolotl/deepseek_v3                 ....rrr........
axolotl/exaone                      .....r...cccc..
axolotl/exaone4                     ....rrr........
axolotl/falcon_h1                   .....r...cccc..
axolotl/gemma                       .-...r...cccc-.
axolotl/gemma3                      .....r...cccc-.
axolotl/gemma3n                     .....r...cccc-.
axolotl/gemma4                      ppppppppppppp.p
axolotl/gemma4_unified              ppppppppppppp.p
axolotl/jamba                       .....r.........
axolotl/llama3                      .....r...cccc..
axolotl/llama3_2_vision             .....r.....w-..
axolotl/llama4                      .....r.........
axolotl/llava                       .....r...cccc..
axolotl/metharme                    .....r...cccc..
axolotl/mistral_v1                  .....r...cccc-.
axolotl/mistral_v2v3                .s...r.....w...
axolotl/mistral_v3_tekken           .s...r.....w...
axolotl/mistral_v7_tekken           .....r...cccc-.
axolotl/nemotron_h                  .....r...cccc-.
axolotl/phi_3                       .....r...cccc..
axolotl/phi_35                      .....r...cccc..
axolotl/phi_4                       .....r...cccc..
axolotl/pixtral                     .s...r...cccc-.
axolotl/qwen2_vl                    .....r...cccc..
axolotl/qwen3                       ....ppp........
axolotl/qwen3_5                     ....ppp........
axolotl/qwen_25                     .....r.........
trl/cohere                          .....r...cccc-.
trl/cohere2                         .....r...cccc-.
trl/cohere2_training                .....r...cccc-.
trl/cohere_training                 .....r...cccc-.
trl/deepseek_r1_distill             ppppppppppppp.p
trl/deepseek_r1_distill_training    pppp.p.pppppp.p
trl/deepseekv3                      ppppppppppppp.p
trl/deepseekv3_training             ppppppppppppp.p
trl/diffusion_gemma                 ...............
trl/diffusion_gemma_training        ...............
trl/gemma                           .-...r...cccc-.
trl/gemma3                          .....r...cccc-.
trl/gemma3_training                 .....r...cccc-.
trl/gemma4                          .....r.........
trl/gemma_training                  .-...r...cccc-.
trl/glm4moe                         ...............
trl/glm4moe_training                ...............
trl/gptoss                          .....r......c..
trl/gptoss_training                 .....r......c..
trl/idefics3                        !!!!!!!!!!!!!!!
trl/idefics3_training               !!!!!!!!!!!!!!!
trl/lfm2                            .....r...cccc..
trl/lfm2_2_5                        .....r.........
trl/lfm2_2_5_vl                     ...............
trl/lfm2_training                   .....r...cccc..
trl/llama3                          .....r...cccc..
trl/llama3_1                        .....r.....w-..
trl/llama3_2                        .....r.....w-..
trl/llama3_training                 .....r...cccc..
trl/llava_next                      !!!!!!!!!!!!!!!
trl/llava_next_training             !!!!!!!!!!!!!!!
trl/muse_glimmer                    ...........w...
trl/muse_glimmer_training           ...........w...
trl/nemotron_3_5_lightning          pppp...pppppppp
trl/nemotron_3_5_lightning_training pppp...pppppppp
trl/nemotron_3_nano                 pppp...pppppppp
trl/nemotron_3_nano_training        pppp...pppppppp
trl/nemotron_3_super                pppp...pppppppp
trl/nemotron_3_super_training       pppp...pppppppp
trl/nemotron_3_ultra                pppp...pppppppp
trl/nemotron_3_ultra_training       pppp...pppppppp
trl/phi3                            .....r...cccc..
trl/phi3_5                          .....r...cccc..
trl/phi3_5_training                 .....r...cccc..
trl/phi3_training                   .....r...cccc..
trl/qwen2_5                         .....r.........
trl/qwen2_5_training                .....r.........
trl/qwen2_5_vl                      .....r...cccc..
trl/qwen2_5_vl_training             .....r...cccc..
trl/qwen3                           ...............
trl/qwen3_5_nothink                 ....ppp........
trl/qwen3_5_nothink_training        ....ppp........
trl/qwen3_5_think                   ...............
trl/qwen3_5_think_training          ...............
trl/qwen3_6                         ...............
trl/qwen3_6_training                ...............
trl/qwen3_8                         ...............
trl/qwen3_8_training                ...............
trl/qwen3_instruct_2507             .....r.........
trl/qwen3_instruct_2507_training    .....r.........
trl/qwen3_training                  ...............
trl/qwen3_vl                        .....r.........
trl/qwen3_vl_training               .....r.........
"""
"""A template, and a letter for each of `TALKS`: a dot for one that is trained on, else its letter
in `KINDS`."""

THINKING = [
    ("axolotl/exaone4", ".rr", ".rr"),
    ("axolotl/gemma4", "..r", "ppp"),
    ("axolotl/qwen3", ".pp", ".pp"),
    ("trl/glm4moe", "...", ".pp"),
    ("trl/nemotron_3_nano", "p..", ".pp"),
    ("trl/qwen3", "...", ".pp"),
    ("trl/qwen3_5_think", "...", ".pp"),
]
"""Templates that read `enable_thinking`, and their letters for the talks "plain", "think" and
"reason" with thinking on, and off."""

LETTERS = dict(line.split() for line in TABLE.strip().splitlines())


def test_every_template_has_a_line():
    assert templates().keys() <= LETTERS.keys()


@pytest.mark.parametrize("name", [name for name in LETTERS if name in templates()])
def test_a_template(name, tokenizer):
    family, own = family_of(name), tokenizer_for(name, tokenizer)
    of = talks(family.end or family.eos)
    assert "".join(letter_of(own, family, key, of) for key in TALKS) == LETTERS[name]


@pytest.mark.parametrize(("name", "on", "off"), THINKING)
def test_a_template_with_thinking_on_and_off(name, on, off, tokenizer):
    family, own = family_of(name), tokenizer_for(name, tokenizer)
    of = talks(family.end or family.eos)
    for enabled, letters in ((True, on), (False, off)):
        keys = ("plain", "think", "reason")
        found = (letter_of(own, family, key, of, enable_thinking=enabled) for key in keys)
        assert "".join(found) == letters


@pytest.mark.parametrize(("key", "end"), [("plain", "<|user|>"), ("null", "<|observation|>")])
def test_a_template_without_an_end_takes_the_one_that_its_model_names(tokenizer, key, end):
    own = tokenizer_for("trl/glm4moe", tokenizer)
    ends = own.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    encoder = ChatEncoder(own, own.chat_template, model_ends=ends)
    *prompt, target = talks("")[key].messages
    (triplet,) = encoder.triplets([encoder.text(prompt, [(target, True)], talks("")[key].tools)])
    assert own.decode(triplet.annotated[-1:]) == end
    assert set(triplet.stop_ids) == set(ends)


def letter_of(tokenizer, family: Family, key: str, of: dict[str, Talk], **kwargs) -> str:
    """Check what is made of one conversation, and say whether it is refused."""
    talk = of[key]
    try:
        encoder = ChatEncoder(
            tokenizer, tokenizer.chat_template, template_kwargs=kwargs, source="the data"
        )
    except TSpinError as error:
        assert "the data" in str(error)
        return WHOLE
    *prompt, target = talk.messages
    try:
        text = encoder.text(prompt, [(target, True)], talk.tools, where="row 7")
    except BadRow as error:
        assert "row 7" in str(error)
        return KINDS[error.kind]
    (triplet,) = encoder.triplets([text])
    check(tokenizer, family, of["plain"] if key == "ended" else talk, triplet, kwargs)
    check_what_the_prompt_lost(text, talk)
    assert encoder.words(triplet.annotated) == tokenizer.decode(
        triplet.annotated[:-1], skip_special_tokens=True
    )
    return "."


def check(tokenizer, family: Family, talk: Talk, triplet: Triplet, kwargs: dict) -> None:
    prompt, response = expected(tokenizer, family, talk, kwargs)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert triplet.prompt == ids
    assert tokenizer.decode(triplet.annotated) == response
    both = tokenizer(prompt + response, add_special_tokens=False)["input_ids"]
    if both[: len(ids)] == ids:
        assert triplet.annotated == both[len(ids) :]
    words = words_of(talk.messages[-1])
    assert not [word for word in words if response.count(word) < words.count(word)]
    assert "None" not in prompt + response


def check_what_the_prompt_lost(text: RowText, talk: Talk) -> None:
    """It is said, and nothing else is."""
    lost = {"tools"} if talk.tools and "Weigh something." not in text.prompt else set()
    for message in talk.messages[:-1]:
        thought, tag, words = (message["content"] or "").rpartition("</think>")
        if tag and thought.removeprefix("<think>").strip() not in text.prompt:
            lost.add(f"reasoning of {message['role']} turns")
        if words.strip() not in text.prompt:
            lost.add(f"words of {message['role']} turns")
        if "tool_calls" in message and "walnut" not in text.prompt:
            lost.add(f"tool calls of {message['role']} turns")
    assert set(text.left_out) == lost


def expected(tokenizer, family: Family, talk: Talk, kwargs: dict) -> tuple[str, str]:
    """The prompt, and what the template renders behind it up to the end of the turn."""
    prompt, whole = renderings(tokenizer, talk, kwargs)
    assert whole.startswith(prompt)
    rendered = whole[len(prompt) :]
    end = family.eos if family.end is None else family.end
    if talk.messages[-1].get("tool_calls") and family.end_of_calls:
        end = family.end_of_calls
    if not end:  # LLaVA's puts a space between turns
        return prompt, rendered.removesuffix(" ") + family.eos
    before, found, _ = rendered.rpartition(end)
    assert found, f"the template renders no {end} in {rendered!r}"
    return prompt, before + end


def renderings(tokenizer, talk: Talk, kwargs: dict) -> tuple[str, str]:
    """The prompt and the whole conversation.

    Beside tool calls "" and null both mean "no words", and arguments may be an object or JSON text.
    Many templates can show only one of each; else it is "", and an object.
    """
    found = []
    for as_text, no_words in itertools.product((False, True), ("", None)):
        messages = [in_form(message, as_text, no_words) for message in talk.messages]
        try:
            whole = tokenizer.apply_chat_template(messages, talk.tools, tokenize=False, **kwargs)
            prompt = tokenizer.apply_chat_template(
                messages[:-1], talk.tools, add_generation_prompt=True, tokenize=False, **kwargs
            )
        except (TemplateError, TypeError):
            continue
        found.append((prompt, whole))
    return next((pair for pair in found if "walnut" in pair[1] and "None" not in pair[1]), found[0])


def in_form(message: dict, as_text: bool, no_words: str | None) -> dict:
    if "tool_calls" not in message:
        return message
    calls = copy.deepcopy(message["tool_calls"])
    if as_text:
        for call in calls:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return message | {"content": message["content"] or no_words, "tool_calls": calls}
