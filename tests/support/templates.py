"""The chat templates that Axolotl and TRL ship, each with a small tokenizer that has its special
tokens, and conversations for them."""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import axolotl
import trl
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

FOLDERS = {
    "axolotl": Path(axolotl.__file__).parent / "utils" / "chat_templates" / "templates",
    "trl": Path(trl.__file__).parent / "chat_templates",
}
SPECIAL = re.compile(
    r"<\|[^|<>\s{}']+\|>|<\|[^|<>\s{}']+>|<[^|<>\s{}']+\|>|<｜[^｜<>\s]+｜>|\[\|[a-z]+\|\]"
    r"|<(?:start|end)_of_(?:turn|utterance|image)>|\[/?[A-Z_]+\]|</?s>|\[gMASK\]|<sop>"
)
"""Text of a template that is one special token of its models."""

TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
"""One token each in reasoning models, but not special."""


class Family(NamedTuple):
    """The tokens of a template's models.

    Attributes:
        bos, eos: the tokenizer's begin-of-text and end-of-text token.
        end: what ends a turn; None for `eos`, "" where the template renders no end.
        end_of_calls: what ends a turn with tool calls; None for `end`.
    """

    bos: str
    eos: str
    end: str | None = None
    end_of_calls: str | None = None


COHERE = Family("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>")
COMMAND_A = COHERE._replace(end="<|END_RESPONSE|><|END_OF_TURN_TOKEN|>")
COMMAND_A_TOOLS = COMMAND_A._replace(end_of_calls="<|END_ACTION|><|END_OF_TURN_TOKEN|>")
GEMMA_4 = Family("<bos>", "<eos>", "<turn|>", "<|tool_response>")
FAMILIES = {
    "alpaca": Family("<s>", "</s>"),
    "aya": COHERE,
    "cohere": COHERE,
    "cohere2": COMMAND_A,
    "command_a": COMMAND_A,
    "command_a_rag": COMMAND_A_TOOLS,
    "command_a_tool_use": COMMAND_A_TOOLS,
    "deepseek": Family("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": GEMMA_4,
    "exaone": Family("[BOS]", "[|endofturn|]"),
    "falcon": Family("<|begin_of_text|>", "<|end_of_text|>", "<|im_end|>"),
    "gemma": Family("<bos>", "<eos>", "<end_of_turn>"),
    "gemma4": GEMMA_4,
    "glm": Family("[gMASK]", "<|endoftext|>", ""),
    "glm4moe_training": Family("[gMASK]", "<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": Family("<|startoftext|>", "<|return|>", end_of_calls="<|call|>"),
    "idefics": Family("<|begin_of_text|>", "<end_of_utterance>"),
    "jamba": Family("<|startoftext|>", "<|endoftext|>", "<|eom|>"),
    "llama": Family("<|begin_of_text|>", "<|eot_id|>"),
    "llama4": Family("<|begin_of_text|>", "<|eot|>"),
    "llava": Family("<s>", "</s>", ""),
    "metharme": Family("<s>", "</s>"),
    "mistral": Family("<s>", "</s>"),
    "muse": Family("<|begin_of_text|>", "<|eot|>"),
    "phi": Family("<s>", "<|endoftext|>", "<|end|>"),
    "phi_4": Family("<|endoftext|>", "<|im_end|>"),
    "pixtral": Family("<s>", "</s>"),
}
"""By the longest beginning of a template's name that is here; others have ChatML's tokens."""

CHATML = Family("<|endoftext|>", "<|im_end|>")


def family_of(name: str) -> Family:
    stem = name.partition("/")[2]
    fitting = [key for key in FAMILIES if stem.startswith(key)]
    return FAMILIES[max(fitting, key=len)] if fitting else CHATML


@functools.cache
def templates() -> dict[str, str]:
    """Sources by name, such as trl/qwen3."""
    return {
        f"{owner}/{file.stem}": file.read_text()
        for owner, folder in FOLDERS.items()
        for file in sorted(folder.glob("*.jinja"))
    }


def tokenizer_for(name: str, small: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Copy a small byte-level tokenizer, and add a template's special tokens to it."""
    source, family = templates()[name], family_of(name)
    backend = Tokenizer.from_str(small.backend_tokenizer.to_str())
    special = dict.fromkeys([family.bos, family.eos, "<pad>", *SPECIAL.findall(source)])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in TAGS if token in source])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token="<pad>",
        chat_template=source,
    )


class Talk(NamedTuple):
    """A conversation; its last message is the target."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weigh",
            "description": "Weigh something.",
            "parameters": {
                "type": "object",
                "properties": {"thing": {"type": "string", "description": "what"}},
                "required": ["thing"],
            },
        },
    }
]
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "weigh", "arguments": {"thing": "walnut"}},
}
OTHER_CALL = {
    "id": "call67890",
    "type": "function",
    "function": {"name": "weigh", "arguments": {"thing": "almond"}},
}


def _user(words: str) -> dict[str, Any]:
    return {"role": "user", "content": words}


def _answer(words: str | None, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": words, **keys}


QUESTION = _user("How heavy is this nut?")
RESULT = {"role": "tool", "name": "weigh", "tool_call_id": "call12345", "content": "12 grams"}


def talks(end: str) -> dict[str, Talk]:
    """Conversations by name.

    Args:
        end: the token with which the model ends a turn.
    """
    answer = _answer("Twelve grams.")
    thought = _answer("<think>\nNuts vary.\n</think>\n\nTwelve grams.")
    called = _answer(None, tool_calls=[CALL])
    return {
        "plain": Talk([QUESTION, answer]),
        "system": Talk([{"role": "system", "content": "Be brief."}, QUESTION, answer]),
        "turns": Talk([QUESTION, answer, _user("And a hazelnut?"), _answer("Two grams.")]),
        "spaces": Talk([QUESTION, _answer("  Twelve\n\n grams. \n")]),
        "think": Talk([QUESTION, thought]),
        "reason": Talk([QUESTION, answer | {"reasoning_content": "Nuts vary."}]),
        "echo": Talk([QUESTION, _answer("<think>\nTwelve grams.\n</think>\n\nTwelve grams.")]),
        "past": Talk([QUESTION, thought, _user("And a hazelnut?"), _answer("Two grams.")]),
        "tools": Talk([QUESTION, answer], TOOLS),
        "call": Talk([QUESTION, _answer("", tool_calls=[CALL])], TOOLS),
        "null": Talk([QUESTION, called], TOOLS),
        "words": Talk([QUESTION, _answer("Let us see.", tool_calls=[CALL])], TOOLS),
        "calls": Talk([QUESTION, _answer("", tool_calls=[CALL, OTHER_CALL])], TOOLS),
        "result": Talk([QUESTION, called, RESULT, answer], TOOLS),
        "ended": Talk([QUESTION, _answer("Twelve grams." + end)]),
    }


def words_of(target: dict[str, Any]) -> list[str]:
    """Every word that training on a target must show the model, as often as it must."""
    texts = [target["content"] or "", target.get("reasoning_content", "")]
    for call in target.get("tool_calls", ()):
        texts += [call["function"]["name"], *call["function"]["arguments"].values()]
    return [word for text in texts for word in text.split() if word not in TAGS]
