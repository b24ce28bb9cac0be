"""What several stages need: random data and policies, guards, times and memory."""

import logging
import random
from collections.abc import Callable
from typing import Any

import torch
from step import RANDOM_LLAMAS, clean, load, random_ids, seconds
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from axolotl_tspin.triplets import TripletTokens

GSM8K = (
    *((39, 61), (69, 215), (87, 282), (46, 91), (42, 53), (75, 175), (69, 81), (54, 154)),
    *((73, 94), (48, 81), (104, 132), (63, 104), (72, 94), (77, 76), (36, 122), (73, 124)),
    *((69, 84), (34, 72), (86, 102), (83, 128), (45, 90), (92, 212), (66, 115), (96, 214)),
    *((89, 159), (58, 139), (39, 99), (41, 97), (67, 125), (70, 149), (45, 114), (46, 50)),
)
"""(question, answer) tokens of every 234th row of GSM8K's training set, as SmolLM2's tokenizer
counts them."""

TINY = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=256,
    tie_word_embeddings=True,
)
"""The policy of dry runs."""


def triplets_like_gsm8k(count: int, vocabulary: int) -> list[TripletTokens]:
    """Draw triplets with GSM8K's lengths and random tokens; the responses differ in length."""
    answers = [answer for _, answer in GSM8K]
    made = []
    for number in range(count):
        prompt, annotated = GSM8K[number % len(GSM8K)]
        lengths = (prompt, annotated, *random.choices(answers, k=2))
        made.append(TripletTokens(*(random_ids(length, vocabulary) for length in lengths)))
    return made


def shortened(triplets: list[TripletTokens], by: int) -> list[TripletTokens]:
    """Cut every part of the triplets to its `by`-th part, for dry runs."""
    return [TripletTokens(*(ids[: max(len(ids) // by, 2)] for ids in t)) for t in triplets]


def random_policy(name: str, device: str) -> Any:
    """Make a policy of `RANDOM_LLAMAS` (bfloat16 on a GPU), or the one of dry runs ("tiny")."""
    if name in RANDOM_LLAMAS:
        return load(name, device)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY).to(device)


def target(device: str, text: str, met: bool) -> dict[str, Any]:
    """A result's columns for a target. A dry run has nothing to measure it with."""
    return {"target": text, "met": met if device == "cuda" else None}


def guarded(case: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Add what is measured to a case, or the error. Running out of memory is a finding; every
    other error makes the stage fail."""
    try:
        return case | measure()
    except torch.OutOfMemoryError:
        found = {"error": "out of memory"}
    except Exception as error:
        logging.getLogger(__name__).exception("%s", case)
        found = {"failed": True, "error": f"{type(error).__name__}: {error}"[:600]}
    clean()
    return case | found


def milliseconds(step: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a step, after two that do not count."""
    for _ in range(2):
        seconds(step, device)
    times = sorted(seconds(step, device) for _ in range(repeats))
    return 1000 * times[len(times) // 2]


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer with as many words, for trainers that ask for one."""
    words = {f"w{number}": number for number in range(3, vocabulary)}
    words |= {"<unk>": 0, "<s>": 1, "</s>": 2}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
