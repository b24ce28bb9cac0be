"""The task: a two-digit number, three digits added or subtracted, solved step by step.

A problem is `47+8-6+9`, its annotated solution `47+8=55,55-6=49,49+9=58`. The answer comes after
the last `=`, so a sampled solution can be checked. All results lie in 10 … 99.
"""

import random
import re

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

STEPS = 3
PAD, BEGIN, ANSWER, END = "<pad>", "<q>", "<a>", "<e>"
CHARACTERS = "0123456789+-=,"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    + BEGIN
    + "{{ message['content'] }}{% else %}"
    + ANSWER
    + "{{ message['content'] }}"
    + END
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
    + ANSWER
    + "{% endif %}"
)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per character."""
    vocabulary = {token: i for i, token in enumerate([PAD, BEGIN, ANSWER, END, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens([PAD, BEGIN, ANSWER, END])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def problem(generator: random.Random) -> tuple[str, str]:
    """Draw a prompt and its worked solution."""
    value = generator.randrange(10, 100)
    prompt, lines = str(value), []
    for _ in range(STEPS):
        digit = generator.randrange(1, 10)
        plus = value < 10 + digit or (value < 100 - digit and generator.random() < 0.5)
        result = value + digit if plus else value - digit
        step = f"+{digit}" if plus else f"-{digit}"
        prompt += step
        lines.append(f"{value}{step}={result}")
        value = result
    return prompt, ",".join(lines)


def problems(count: int, seed: int, exclude: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """Draw different problems, none of which has a prompt in `exclude`."""
    generator, found = random.Random(seed), {}
    while len(found) < count:
        prompt, solution = problem(generator)
        if prompt not in exclude:
            found[prompt] = solution
    return list(found.items())


def answer(solution: str) -> str | None:
    """Find the last result of a solution; None if it has none."""
    match = re.search(r"=(\d+)$", solution)
    return match.group(1) if match else None


def restated(solution: str) -> str:
    """Repeat a solution's answer at its end; annotations shift to this in a study."""
    return f"{solution},{answer(solution)}"


def answers(sampled: str, solution: str) -> bool:
    """True if a sampled solution ends in the annotated one's answer."""
    return answer(sampled) == answer(solution)


def answers_restated(sampled: str, solution: str) -> bool:
    """True if a sampled solution ends in the annotated one's answer, restated."""
    return answers(sampled.rpartition(",")[0], solution) and sampled.endswith(
        f",{answer(solution)}"
    )
